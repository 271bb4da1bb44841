"""A job as server-sent events: what its state is, told as what has happened, so that any point can be gone on from.

An event's id is the attempt and a place in it: denoising steps, then pictures, then the end. Nothing is kept for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse

from safelight.errors import InvalidValue, LoadError, ShuttingDown
from safelight.jobs import Job, JobError, JobResult, JobStatus
from safelight.server.dispatcher import Dispatcher
from safelight.server.event_stream import PING, event, event_stream
from safelight.server.follow import OnDisconnect, watch
from safelight.server.prediction import progress_line

_SHARED_EVENTS = 4096

Show = Callable[[], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class EventNames:
    """What a client calls the events; ``None`` for those it does not know, and would stumble over."""

    log: str
    output: str
    error: str | None
    done: str
    start: str | None = None


REPLICATE = EventNames("logs", "output", "error", "done")
COG = EventNames("log", "output", None, "completed", "start")


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where a client has seen a job."""

    attempt: int = 0
    number: int = 0

    @classmethod
    def of(cls, text: str | None) -> Place:
        """``Last-Event-ID`` or ``starting_after``. Raises ``InvalidValue`` for an id that no event of ours has."""
        if not text:
            return cls()
        if not (match := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text)):
            raise InvalidValue("Last-Event-ID is not one that this server gave", param="Last-Event-ID")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.number}"


def prediction_stream(
    dispatcher: Dispatcher,
    job: Job,
    show: Show,
    names: EventNames,
    after: Place | None = None,
    *,
    with_previews: bool = False,
    on_disconnect: OnDisconnect = OnDisconnect.KEEP,
) -> StreamingResponse:
    """``show`` gives the job as the job API does."""
    teller = _Teller(job, show, names, after or Place(), with_previews=with_previews)
    return event_stream(_events(dispatcher, teller, on_disconnect))


async def _events(dispatcher: Dispatcher, teller: _Teller, on_disconnect: OnDisconnect) -> AsyncIterator[bytes]:
    try:
        async for has_changed in watch(dispatcher, teller.job, on_disconnect):
            if not has_changed:
                yield PING
            for told in teller.news() if has_changed else ():
                yield told
    except (ShuttingDown, LoadError) as error:
        # Not the end of the job: a client that comes back goes on from here.
        yield f": {error.message}\n".encode()


class _Teller:
    """Remembers how far it has told."""

    def __init__(self, job: Job, show: Show, names: EventNames, seen: Place, *, with_previews: bool) -> None:
        self.job = job
        self._show = show
        self._names = names
        self._seen = seen
        self._has_started = seen != Place()
        self._with_previews = with_previews
        self._previews_shown: set[tuple[int, int, int]] = set()

    def news(self) -> Iterator[bytes]:
        """Events for what has happened since the last call."""
        job, total_steps = self.job, self.job.params.total_steps
        if self._names.start and not self._has_started:
            self._has_started = True
            yield event(self._names.start, _json(self._show()))
        if self._seen.attempt != job.attempt:
            self._seen = Place(job.attempt)
        steps = total_steps if job.status is JobStatus.SUCCEEDED else job.step
        for step in range(self._seen.number + 1, steps + 1):
            self._seen = Place(job.attempt, step)
            yield _step_event(self._names.log, job.attempt, step, total_steps)
        yield from self._news_of_previews()
        if job.status.is_terminal:
            yield from self._end(total_steps)

    def _news_of_previews(self) -> Iterator[bytes]:
        for preview in self.job.previews if self._with_previews else ():
            place = (preview.attempt, preview.image_index, preview.number)
            if place not in self._previews_shown:
                self._previews_shown.add(place)
                url = f"{self._show()['urls']['get']}/preview/{preview.image_index}"
                members = {"image_index": preview.image_index, "number": preview.number, "step": preview.step}
                yield event("preview", _json(members | {"url": url}))

    def _end(self, total_steps: int) -> Iterator[bytes]:
        outcome, number = self.job.outcome, total_steps
        reason: dict[str, str] = {}
        for url in self._show()["output"] if isinstance(outcome, JobResult) else ():
            number += 1
            if number > self._seen.number:
                yield self._told(number, self._names.output, url)
        if isinstance(outcome, JobError):
            reason = {"reason": "canceled" if self.job.status is JobStatus.CANCELLED else "error"}
            if self._names.error and reason["reason"] == "error":
                yield event(self._names.error, outcome.message)
        data = _json(self._show()) if self._names.start else _json(reason)
        yield self._told(total_steps + self.job.params.num_images + 1, self._names.done, data)

    def _told(self, number: int, name: str, data: str) -> bytes:
        self._seen = Place(self.job.attempt, number)
        return event(name, data, str(self._seen))


@functools.lru_cache(maxsize=_SHARED_EVENTS)
def _step_event(name: str, attempt: int, step: int, total_steps: int) -> bytes:
    """The same for all who follow the job, and for all jobs: made once."""
    return event(name, progress_line(step, total_steps).rstrip("\n"), str(Place(attempt, step)))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
