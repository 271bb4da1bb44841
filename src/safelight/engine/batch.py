"""Step-level batching: pictures of several jobs share a denoising step, and come and go between steps.

No torch here: what a step is, the model knows (``flux/model.py``, or ``stub.py`` in tests). All of it but ``join`` runs
on the GPU thread.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL.Image import Image

from safelight.engine.drawing_job import DrawingJob
from safelight.engine.failures import is_out_of_memory
from safelight.engine.sources import Source
from safelight.params import GenerationParams

log = logging.getLogger(__name__)

OnWarm = Callable[[int, int, int], None]
"""Called with (width, height, rows): a step of so many rows of this size pays for no first use any more."""

_FIRST_USES = 2


class Drawing(Protocol):
    """A picture under way; ``rows`` are its share of a transformer call, for which all have equal ``adapters``."""

    params: GenerationParams

    @property
    def adapters(self) -> object: ...

    @property
    def rows(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def is_complete(self) -> bool: ...


class Shot(Protocol):
    """A preview or picture that is on its way to the host."""

    def picture(self) -> Image: ...

    def checked_picture(self, action: str | None) -> Image: ...


D = TypeVar("D", bound=Drawing)


class Model(Protocol[D]):
    """What a batch drives; see ``FluxModel`` for what each of these promises."""

    @property
    def lookahead(self) -> int: ...

    def tokens(self, params: GenerationParams) -> int: ...

    def remarks(self, params: GenerationParams) -> tuple[list[str], int]: ...

    def prepare(self, params: GenerationParams) -> None: ...

    def begin(self, params: GenerationParams, source: Source | None, share: Any = None) -> Sequence[D]: ...

    def step(self, drawings: Sequence[D]) -> Sequence[Shot | None]: ...

    def decode(self, drawing: D) -> Shot: ...

    def mark(self) -> Callable[[], None]: ...

    def free_memory(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Member:
    """A picture of a job. One that was in a step that failed goes ``alone``, so that it fails nobody else again."""

    job: DrawingJob
    index: int
    drawing: Drawing
    is_alone: bool = False


@dataclass(frozen=True, slots=True)
class _Launch:
    """What the device works at: a step of several members, or the decoding of one."""

    wait: Callable[[], None]
    members: list[_Member]
    shots: Sequence[Shot | None]
    begun_s: float
    is_step: bool


class Batch:
    """Oldest first: the oldest picture and those of its shape that may share its step, up to ``max_tokens`` tokens."""

    def __init__(self, model: Model[Any], on_warm: OnWarm = lambda *_: None) -> None:
        self.max_tokens = 0
        self.max_rows = 0
        """Rows of one step at most; 0: as many as ``max_tokens`` allows."""
        self.max_pixels = 0
        """Pixels of all rows of a step at most, for want of memory; 0: as many as ``max_tokens`` allows."""
        self.model = model
        self._on_warm = on_warm
        self._arrivals: deque[DrawingJob] = deque()
        self._members: list[_Member] = []
        self._launches: deque[_Launch] = deque()
        self._completed_s = 0.0
        self._uses: Counter[tuple[int, int, int]] = Counter()

    def join(self, job: DrawingJob) -> None:
        """From any thread: the job begins before the next step."""
        self._arrivals.append(job)

    def advance(self) -> None:
        """Launches one step of some pictures, and sees older launches to their end while the device works at it.

        Returns after at least one thing was done, so that who calls again and again sees every job through.
        """
        self._admit()
        self._launch_decodings()
        group = self._group()
        if group:
            self._launch_step(group)
        while len(self._launches) > (self.model.lookahead if group else 0):
            self._complete(self._launches.popleft())
            if not group:
                return  # somebody may have come meanwhile

    def fail(self, error: BaseException) -> None:
        """Ends every job with ``error``: the batch itself can no longer be trusted."""
        jobs = [*self._arrivals, *(member.job for member in self._members)]
        jobs += [member.job for launch in self._launches for member in launch.members]
        self._arrivals.clear()
        self._members.clear()
        self._launches.clear()
        for job in jobs:
            job.fail(error)

    # --- launching --------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._arrivals:
            job = self._arrivals.popleft()
            if job.was_cancelled():
                continue
            with job.failing():
                job.begin()
                drawings = self.model.begin(job.params, job.source, job.share)
                job.remarks = self.model.remarks(job.params)
                job.begun()
                is_alone = job.share is not None  # the other workers know of no other
                self._members += [_Member(job, index, drawing, is_alone) for index, drawing in enumerate(drawings)]

    def _group(self) -> list[_Member]:
        """Those that make the next step together."""
        self._members = [member for member in self._members if not member.job.was_cancelled()]
        if not self._members:
            return []
        first = self._members[0]
        if first.is_alone:
            return [first]
        group, rows = [first], first.drawing.rows
        limit = self.max_tokens // self.model.tokens(first.job.params)
        if self.max_rows:
            limit = min(limit, self.max_rows)
        if self.max_pixels:
            limit = min(limit, self.max_pixels // first.job.params.row_pixels)
        for member in self._members[1:]:
            fits = member.job.params.shape == first.job.params.shape and not member.is_alone
            fits = fits and member.drawing.adapters == first.drawing.adapters
            if fits and rows + member.drawing.rows <= limit:
                group.append(member)
                rows += member.drawing.rows
        return group

    def _launch_step(self, group: list[_Member]) -> None:
        begun_s = time.monotonic()
        try:
            shots = self.model.step([member.drawing for member in group])
            self._launches.append(_Launch(self.model.mark(), group, shots, begun_s, is_step=True))
        except Exception as error:
            return self._step_failed(group, error)
        self._count_use(group)

    def _launch_decodings(self) -> None:
        for member in [member for member in self._members if member.drawing.is_complete]:
            self._members.remove(member)
            if not member.job.was_cancelled():
                with member.job.failing():
                    begun_s = time.monotonic()
                    shot = None if member.job.is_helping else self.model.decode(member.drawing)
                    self._launches.append(_Launch(self.model.mark(), [member], [shot], begun_s, is_step=False))

    def _step_failed(self, group: list[_Member], error: Exception) -> None:
        """Alone, it is the job's failure. Together, nobody knows whose: each tries again by itself."""
        traceback.clear_frames(error.__traceback__)  # lets go of what the failed call held
        self.model.free_memory()
        if len(group) == 1:
            return group[0].job.fail(error)
        log.warning("a step of %d pictures failed (%s); they go on one by one", len(group), type(error).__name__)
        if is_out_of_memory(error):
            rows = sum(member.drawing.rows for member in group)
            self.max_tokens = self.model.tokens(group[0].job.params) * rows // 2
        for member in group:
            member.is_alone = True

    def _count_use(self, group: list[_Member]) -> None:
        params, rows = group[0].job.params, sum(member.drawing.rows for member in group)
        use = params.width, params.height, rows
        self._uses[use] += 1
        if self._uses[use] == _FIRST_USES:
            self._on_warm(*use)

    # --- completing -------------------------------------------------------------------------------------------------

    def _complete(self, launch: _Launch) -> None:
        try:
            launch.wait()
        except Exception as error:
            return self._members_failed(launch.members, error)
        begun_s = max(launch.begun_s, self._completed_s)  # the device does one thing after the other
        ended_s = self._completed_s = time.monotonic()
        for member, shot in zip(launch.members, launch.shots, strict=True):
            job = member.job
            if job.was_cancelled():
                continue
            with job.failing():
                if launch.is_step:
                    job.timeline.step_done(begun_s, ended_s, len(launch.members))
                    job.step_done(member.index, shot)
                elif shot is not None:
                    job.picture_done(member.index, shot)
                else:
                    job.share_done()
        self._members = [member for member in self._members if not member.job.is_over]

    def _members_failed(self, members: Sequence[_Member], error: Exception) -> None:
        """Nobody knows what of it was done before it failed."""
        for member in members:
            member.job.fail(error)
        self._members = [member for member in self._members if not member.job.is_over]
