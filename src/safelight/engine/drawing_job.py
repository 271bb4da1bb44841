"""A job on the GPU thread: what it was asked, whom it tells, and what has come of it so far."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from safelight.engine.failures import failure_of, reach
from safelight.engine.previews import OnPreview
from safelight.engine.sources import Source
from safelight.engine.team import Share, TeamLost
from safelight.engine.timeline import Timeline
from safelight.errors import JobCancelled
from safelight.params import GenerationParams

if TYPE_CHECKING:
    from PIL.Image import Image

OnStep = Callable[[int, int], None]
"""Called on the GPU thread after each denoising step of each picture with (steps done, total steps)."""


class _Shot(Protocol):
    def picture(self) -> Image: ...

    def checked_picture(self, action: str | None) -> Image: ...


@dataclass(frozen=True, slots=True)
class Generation:
    """Pictures of one job, in the order of its seeds; ``seconds`` maps stages to their time."""

    images: list[Image]
    warnings: list[str]
    text_tokens: int
    seconds: dict[str, float]


class DrawingJob:
    """Made on the loop; from then on the GPU thread's, but for ``cancelled`` and ``outcome``.

    Callbacks run in the context of whoever made it. Without ``on_step`` it is no user's job, and no fault point counts.
    With a ``share`` other workers make its steps too.
    """

    def __init__(
        self,
        params: GenerationParams,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        source: Source | None = None,
        timeline: Timeline | None = None,
        share: Share | None = None,
    ) -> None:
        self.params = params
        self.source = source
        self.share = share
        self.timeline = timeline or Timeline()
        self.cancelled = threading.Event()
        self.outcome: Future[Generation] = Future()
        self.remarks: tuple[list[str], int] = ([], 0)
        self._on_step = on_step
        self._on_preview = on_preview
        self._context = contextvars.copy_context()
        self._steps_done = 0
        self._steps_of = [0] * params.num_images
        self._images: dict[int, Image] = {}
        self._parts_left = params.num_images

    @property
    def is_over(self) -> bool:
        return self.outcome.done()

    @property
    def is_helping(self) -> bool:
        """Whether another worker has the pictures."""
        return self.share is not None and not self.share.is_leader

    def was_cancelled(self) -> bool:
        """Whether it is over, or is so from now on because that was asked for, or its team is lost."""
        if self.cancelled.is_set() and not self.is_over:
            self.fail(JobCancelled(f"cancelled after step {self._steps_done} of {self.params.total_steps}"))
        if self.share is not None and self.share.is_lost and not self.is_over:
            self.fail(TeamLost("the team was given up"))
        return self.is_over

    def fail(self, error: BaseException) -> None:
        """Ends it with ``error``, in our own words if it is a library's; does nothing if it is over."""
        if self.is_over:
            return
        ours: Exception | None = failure_of(error, self.params) if isinstance(error, RuntimeError) else None
        if self.share is not None:
            if ours is None and self.share.is_lost and isinstance(error, RuntimeError):
                ours = TeamLost(str(error))  # of what was under way, whatever it says
            self.share.end(ours or error)
        if ours is not None:
            ours.__cause__ = error
        self.outcome.set_exception(ours or error)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What goes wrong inside is this job's end, and nobody else's."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def begin(self) -> None:
        """Its text is encoded now, once the workers that share it have met."""
        if self.share is not None:
            self.share.begin()
        self.timeline.begin_s = time.monotonic()
        if self._on_step is not None:
            reach("engine.begin")

    def begun(self) -> None:
        """Its first step may come."""
        self.timeline.begun_s = time.monotonic()

    def step_done(self, index: int, preview: _Shot | None) -> None:
        """A step of picture ``index`` ended."""
        self._steps_done += 1
        self._steps_of[index] += 1
        if preview is not None and self._on_preview is not None:
            self._context.run(self._on_preview, index, self._steps_of[index], preview.picture())
        if self._on_step is not None:
            reach("engine.step")
            self._context.run(self._on_step, self._steps_done, self.params.total_steps)

    def picture_done(self, index: int, shot: _Shot) -> None:
        """Picture ``index`` is decoded. Raises ``BadOutput`` if it is none."""
        drawn = shot.checked_picture(reach("engine.decode") if self._on_step is not None else None)
        self._images[index] = self.source.keep_outside_mask(drawn) if self.source else drawn
        if len(self._images) == self.params.num_images:
            images = [self._images[place] for place in range(self.params.num_images)]
            self.timeline.decoded_s = time.monotonic()
            self.outcome.set_result(Generation(images, *self.remarks, self.timeline.stages()))

    def share_done(self) -> None:
        """All steps of one more of its pictures are made, which the leader decodes."""
        self._parts_left -= 1
        if not self._parts_left:
            self.timeline.decoded_s = time.monotonic()
            self.outcome.set_result(Generation([], *self.remarks, self.timeline.stages()))
