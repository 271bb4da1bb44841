"""An engine without a model: coloured noise after as many steps as asked, for tests of everything around an engine.

``STUB_STEP_S`` and ``STUB_LOAD_S`` in the environment set its speed in seconds, ``STUB_ROWS`` how many rows share a
step for the time of one, ``STUB_TILES`` how many colours a picture has along each side. The prompt
``out of memory`` fails.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from safelight.checkpoint import Checkpoint
from safelight.engine.failures import check_picture
from safelight.engine.load_report import LoadReport
from safelight.engine.memory_plan import MemoryMode, MemoryPlan
from safelight.engine.model_manager import ModelManager
from safelight.engine.options import EngineOptions, NumberFormat
from safelight.engine.previews import preview_steps
from safelight.engine.sources import Source
from safelight.engine.team import Share, Team, TeamLost
from safelight.params import SIZE_MULTIPLE, GenerationParams
from safelight.protocol import TeamPlace

_FAILING_PROMPT = "out of memory"
_LIKE_REFERENCE = 0.5
_TEAM_POLL_S = 0.001


@dataclass(slots=True, eq=False)
class StubDrawing:
    """A picture that is known from the start."""

    params: GenerationParams
    image: Image.Image
    rows: int
    share: Share | None = None
    step: int = 0

    @property
    def adapters(self) -> object:
        return self.params.loras

    @property
    def is_complete(self) -> bool:
        return self.step == self.params.steps_per_image


@dataclass(frozen=True, slots=True)
class StubShot:
    """A picture that is there already."""

    image: Image.Image

    def picture(self) -> Image.Image:
        return self.image

    def checked_picture(self, action: str | None) -> Image.Image:
        check_picture(is_finite=action != "nan", spread=0.0 if action == "flat" else 1.0)
        return self.image


class StubModel:
    """As ``FluxModel``, in sleeps; ``steps`` records which drawings were moved together."""

    lookahead = 0

    def __init__(self) -> None:
        self.steps: list[list[StubDrawing]] = []

    def tokens(self, params: GenerationParams) -> int:
        return round(params.megapixels * 1e6 / SIZE_MULTIPLE**2) + params.max_sequence_length

    def remarks(self, params: GenerationParams) -> tuple[list[str], int]:
        return [], len(params.prompt.split())

    def prepare(self, params: GenerationParams) -> None:
        pass

    def begin(self, params: GenerationParams, source: Source | None, share: Share | None = None) -> list[StubDrawing]:
        if params.prompt == _FAILING_PROMPT:
            raise RuntimeError(params.prompt)
        rows = params.rows // params.num_images
        return [StubDrawing(params, _picture(params, seed, source), rows, share) for seed in params.seeds]

    def step(self, drawings: Sequence[StubDrawing]) -> list[StubShot | None]:
        seconds = _number("STUB_STEP_S", 0.01) * max(len(drawings) / _number("STUB_ROWS", 1), 1)
        if share := drawings[0].share:
            share.go_on()
            seconds /= share.team.size
        time.sleep(seconds)
        self.steps.append(list(drawings))
        shots: list[StubShot | None] = []
        for drawing in drawings:
            drawing.step += 1
            shown = preview_steps(drawing.params.steps_per_image, drawing.params.partial_images)
            shots.append(StubShot(drawing.image) if drawing.step in shown else None)
        return shots

    def decode(self, drawing: StubDrawing) -> StubShot:
        return StubShot(drawing.image)

    def mark(self) -> Callable[[], None]:
        return lambda: None

    def free_memory(self) -> None:
        pass


class StubEngine(ModelManager):
    """The same threads, batching, progress, cancelling and failures as the real one; no torch."""

    def _build(self, checkpoint: Checkpoint, device: str, options: EngineOptions, report: LoadReport) -> Any:
        for component in checkpoint.components:
            with report.component(component.name, component.weight_bytes), report.phase("weights"):
                time.sleep(_number("STUB_LOAD_S", 0.05) / len(checkpoint.components))
        self._plan = MemoryPlan(MemoryMode.FULL, NumberFormat("float32"), checkpoint.weight_bytes, 0)
        return StubModel()

    def _new_team(self, place: TeamPlace) -> Team:
        return StubTeam(place, "cpu")


class StubTeam(Team):
    """Without torch: the leader's words are bytes of the file by which its members meet. Nobody waits for a helper."""

    def connect(self) -> None:
        self._raise_if_lost()
        if self._host is None:
            with self._losing():
                self._host = open(self._rendezvous, "a+b", buffering=0)  # noqa: SIM115
                self._host.seek(0)

    def announce(self, *, goes_on: bool = True) -> bool:
        self._raise_if_lost()
        if self.rank == 0:
            self._host.write(bytes([goes_on]))
            return goes_on
        while not (word := self._host.read(1)):
            if self.is_lost:
                raise TeamLost("the team was given up")
            time.sleep(_TEAM_POLL_S)
        return bool(word[0])

    def abort(self) -> None:
        self.is_lost = True


def draw(params: GenerationParams, seed: int) -> Image.Image:
    """The same tiles for the same prompt, seed, size and steps."""
    source = random.Random(f"{params.prompt}|{seed}|{params.width}x{params.height}|{params.num_inference_steps}")  # noqa: S311
    across = int(_number("STUB_TILES", 8))
    tiles = Image.frombytes("RGB", (across, across), source.randbytes(3 * across * across))
    return tiles.resize((params.width, params.height), Image.Resampling.NEAREST)


def _picture(params: GenerationParams, seed: int, source: Source | None) -> Image.Image:
    drawn = draw(params, seed)
    if source is None:
        return drawn
    assert params.source is not None
    if params.reference_size is not None:
        return Image.blend(source.image.resize(drawn.size), drawn, _LIKE_REFERENCE)
    return Image.blend(source.image, drawn, params.source.strength)


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name, default))
