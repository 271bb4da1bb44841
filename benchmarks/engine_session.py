"""An engine without a server, for benchmarks: a ``ModelManager`` that one thread loads, warms up and asks."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.engine.model_manager import ModelManager
from safelight.engine.options import EngineOptions
from safelight.params import GenerationParams, LoraUse

T = TypeVar("T")

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """``seconds`` from asking to pixels, ``stages`` of them; ``digest`` is of the pixels of all images."""

    seconds: float
    stages: dict[str, float]
    digest: str


class EngineSession:
    """Loads at the first use of ``load``; ``checkpoint`` is what it was given."""

    def __init__(self, checkpoint: Checkpoint, device: str, manager: ModelManager, runner: asyncio.Runner) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.manager = manager
        self._runner = runner

    def load(self, options: EngineOptions) -> float:
        """Seconds that it took, the import of the libraries included."""
        start_s = time.perf_counter()
        self._runner.run(self.manager.load_model(self.checkpoint, self.device, options))
        return time.perf_counter() - start_s

    def warm_up(self, sizes: Sequence[Size]) -> None:
        """As a worker does it before it is ready."""
        self._runner.run(self.manager.warmup(sizes))

    def draw(self, params: GenerationParams) -> Picture:
        """One job."""
        start_s = time.perf_counter()
        made = self._runner.run(self.manager.generate_image(params))
        seconds = time.perf_counter() - start_s
        content = hashlib.sha256(b"".join(image.tobytes() for image in made.images))
        return Picture(seconds, made.seconds, content.hexdigest())

    def with_model(self, function: Callable[[Any], T]) -> T:
        """What it gives for the loaded ``FluxModel``, on the GPU thread."""
        model = self.manager._loaded_batch.model
        return self.manager.executor.submit(function, model).result()

    def params(
        self, size: Size, steps: int, loras: Sequence[str] = (), prompt: str = "a red circle", count: int = 1
    ) -> GenerationParams:
        """Otherwise the model's own defaults, and the same seed always."""
        card = self.checkpoint.card
        return GenerationParams(
            prompt=prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=card.default_guidance_scale,
            max_sequence_length=card.max_sequence_length,
            seed=7,
            num_images=count,
            loras=tuple(LoraUse(name) for name in loras),
        )


@contextmanager
def engine_session(model: str, device: str) -> Iterator[EngineSession]:
    """Ends with the engine cleaned up."""
    with asyncio.Runner() as runner:
        manager = runner.run(_made())
        try:
            yield EngineSession(open_checkpoint(model), device, manager, runner)
        finally:
            runner.run(manager.cleanup())


async def _made() -> ModelManager:
    return ModelManager()
