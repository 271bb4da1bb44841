"""What the terminal shows while the server runs: bars and one quiet live line on a TTY, otherwise plain lines."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys

from safelight.server.front import Front
from safelight.server.live_terminal import LiveTerminal
from safelight.server.status import worker_status
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState
from safelight.status_text import live_lines, moved, position
from safelight.terminal import Look, is_capable, look_of

log = logging.getLogger(__name__)

_MIN_INTERVAL_S = 0.25
_CLOCK_S = 1.0
_SLOW_CLOCK_S = 10.0


class CurrentStderr(logging.Handler):
    """Writes to what ``sys.stderr`` is now, whoever has replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


async def show_progress(front: Front, url: str) -> None:
    """Runs for as long as the server does."""
    log.info("listening on %s", url)
    if not is_capable(sys.stderr) or front.config.log_format == "json":
        return await _show_lines(front)
    look = look_of(sys.stderr)
    try:
        terminal = LiveTerminal(sys.stderr.fileno())
    except OSError:  # a terminal that has no name here, as in some containers
        return await _show_lines(front)
    with terminal:
        await _show_live(front, terminal, look)


async def _show_lines(front: Front) -> None:
    last: dict[int, tuple[object, ...]] = {}
    while True:
        for worker in front.workers:
            progress = worker.load.progress
            state = (progress.phase, progress.component, progress.components_done)
            if not worker.load.is_finished and last.get(worker.id) != state:
                last[worker.id] = state
                log.info("worker %d: %s", worker.id, _line(worker), extra={"worker_id": worker.id})
        is_loading = any(map(_is_loading, front.workers))
        await (front.changes if is_loading else front.device_changes).wait()


def _is_loading(worker: Worker) -> bool:
    return not worker.load.is_finished and worker.state not in (WorkerState.FAILED, WorkerState.UNLOADED)


def _line(worker: Worker) -> str:
    status = worker_status(worker)
    return position(status) + (f" {moved(status)}" if status["bytes_done"] else "")


async def _show_live(front: Front, terminal: LiveTerminal, look: Look) -> None:
    """Looks at the state when it changes, four times a second at most; the thread draws it if it looks different."""
    while True:
        seen = front.changes.count
        terminal.show(functools.partial(live_lines, front.status(), look=look))
        await asyncio.sleep(_MIN_INTERVAL_S)
        if front.changes.count == seen:
            is_quiet = all(worker.load.is_finished for worker in front.workers)
            await front.changes.wait(_SLOW_CLOCK_S if is_quiet else _CLOCK_S)
