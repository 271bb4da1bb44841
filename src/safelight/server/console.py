"""What the terminal shows while a model loads: bars on a TTY, otherwise one plain line per step of progress."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from safelight.server.front import Front
from safelight.server.status import ServerStatus
from safelight.server.worker import Worker

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)

_REDRAW_S = 0.2


class CurrentStderr(logging.Handler):
    """Writes to what ``sys.stderr`` is now: while bars are drawn, rich puts something there that writes above them."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


async def show_progress(front: Front, url: str) -> None:
    """Runs for as long as the server does."""
    log.info("listening on %s", url)
    if sys.stderr.isatty():
        await _show_bars(front)
    else:
        await _show_lines(front)


async def _show_lines(front: Front) -> None:
    last: dict[int, tuple[object, ...]] = {}
    while True:
        for worker in front.workers:
            progress = worker.load.progress
            state = (progress.phase, progress.component, progress.components_done)
            if not worker.load.is_finished and last.get(worker.id) != state:
                last[worker.id] = state
                log.info("worker %d: %s", worker.id, _line(worker))
        await front.changes.wait()


async def _show_bars(front: Front) -> None:
    # rich costs a tenth of a second to import, which the first answers should not wait for.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    while True:
        columns = (TextColumn("{task.description:<40}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            tasks = {worker.id: bars.add_task(worker.device.name, total=None) for worker in front.workers}
            while _is_loading(front):
                for worker in front.workers:
                    _draw(bars, tasks[worker.id], worker)
                await front.changes.wait(_REDRAW_S)
        while not _is_loading(front):
            await front.changes.wait()


def _is_loading(front: Front) -> bool:
    return front.state in (ServerStatus.LOADING, ServerStatus.WARMING)


def _draw(bars: Progress, task: TaskID, worker: Worker) -> None:
    progress = worker.load.progress
    bars.update(task, description=_position(worker), total=progress.bytes_total or None, completed=progress.bytes_done)


def _position(worker: Worker) -> str:
    progress = worker.load.progress
    count = f"{progress.components_done}/{progress.components_total}" if progress.components_total else ""
    return " ".join(part for part in (worker.device.name, progress.phase, progress.component, count) if part)


def _line(worker: Worker) -> str:
    progress = worker.load.progress
    moved = f" {progress.bytes_done / 1e6:.1f} of {progress.bytes_total / 1e6:.1f} MB" if progress.bytes_done else ""
    return _position(worker) + moved
