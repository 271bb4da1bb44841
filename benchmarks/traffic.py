"""What is asked of a server under load, and when: repeatable, for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL

PROMPTS = ("examples", "same", "distinct")
DEFAULT_SIZE = "auto"
"""As OpenAI's API calls the size that the model chooses."""

_PARTIAL_IMAGES = 3
"""As many as OpenAI's API has: the first one comes earliest."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, due so many seconds after the start. Size ``auto`` and no steps mean the model's own defaults, no
    model the server's.
    """

    due_s: float
    prompt: str
    size: str
    steps: int | None
    seed: int
    is_streamed: bool = False
    model: str = ""

    def body(self) -> dict[str, Any]:
        """As ``POST /v1/images/generations`` takes it."""
        body: dict[str, Any] = {"prompt": self.prompt, "size": self.size, "seed": self.seed}
        if self.steps is not None:
            body["num_inference_steps"] = self.steps
        if self.model:
            body["model"] = self.model
        return body | {"stream": True, "partial_images": _PARTIAL_IMAGES} if self.is_streamed else body


class Traffic:
    """Makes requests whose seeds never repeat; ``preview_share`` of those at a rate are streams with previews.

    ``prompts`` is one of ``PROMPTS``: the examples of the embedded model in turn, the first of them always, or each
    with a number that makes it new. A server may keep the embeddings of prompts that it knows.
    """

    def __init__(
        self, sizes: Sequence[str], steps: int | None, prompts: str, preview_share: float = 0.0, seed: int = 0
    ) -> None:
        self.sizes = sizes
        self.steps = steps
        self._preview_share = preview_share
        self._seed = seed
        self._seeds = itertools.count(1)
        self._prompts = _prompts(prompts)

    def poisson(self, rate: float, seconds: float) -> list[Asked]:
        """Requests at random times, ``rate`` in a second on average, until ``seconds`` are over."""
        source = random.Random(f"{self._seed} {rate}")
        due = itertools.accumulate(source.expovariate(rate) for _ in itertools.count())
        return [
            self._asked(due_s, source.choice(self.sizes), source.random() < self._preview_share)
            for due_s in itertools.takewhile(lambda due_s: due_s < seconds, due)
        ]

    def at_once(self, count: int, sizes: Sequence[str] = ()) -> list[Asked]:
        """Requests that are all due now; the sizes, all of them by default, take turns."""
        in_turn = itertools.islice(itertools.cycle(sizes or self.sizes), count)
        return [self._asked(0.0, size) for size in in_turn]

    def _asked(self, due_s: float, size: str, is_streamed: bool = False) -> Asked:
        return Asked(due_s, next(self._prompts), size, self.steps, next(self._seeds), is_streamed)


def _prompts(kind: str) -> Iterator[str]:
    examples = open_checkpoint(EMBEDDED_MODEL).card.examples
    if kind == "same":
        return itertools.repeat(examples[0])
    in_turn = itertools.cycle(examples)
    return in_turn if kind == "examples" else (f"{next(in_turn)} {number}" for number in itertools.count(1))
