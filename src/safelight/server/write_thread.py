"""The thread that writes. Changes that come while it is on its way to the disk go there together next.

A commit takes milliseconds on many disks, and as long for fifty changes as for one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from safelight.server.database import JobDatabase

T = TypeVar("T")

Change = Generator[None, None, T]
"""Changes the database up to its only ``yield``, and goes on from there once that is on disk; then returns.

If it does not get to the disk, the error is raised at the ``yield``.
"""

_MOST = 64
"""Changes of one transaction: nobody is to wait for hundreds of others."""


@dataclass(slots=True)
class _Entry:
    change: Change[Any]
    future: Future[Any] = field(default_factory=Future)
    error: BaseException | None = None

    def begin(self) -> None:
        """Its own failure is its own; the others of the transaction go on."""
        try:
            next(self.change)
        except Exception as error:
            self.error = error

    def end(self, lost: Exception | None) -> None:
        """The transaction is on disk, or ``lost``."""
        if self.error is not None:
            return self.future.set_exception(self.error)
        try:
            if lost is None:
                next(self.change)
            else:
                self.change.throw(lost)
        except StopIteration as done:
            self.future.set_result(done.value)
        except Exception as error:
            self.future.set_exception(error)


class WriteThread:
    """The only one that changes the database. ``sync`` is called before each commit."""

    def __init__(self, database: JobDatabase, sync: Callable[[], None]) -> None:
        self._database = database
        self._sync = sync
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-write")
        self._waiting: deque[_Entry] = deque()

    def close(self) -> None:
        """Returns when all that was asked for is done."""
        self._thread.shutdown()

    async def together(self, change: Change[T]) -> T:
        """What the change returns, which is on disk then. A caller that goes away does not stop it."""
        entry = _Entry(change)
        self._waiting.append(entry)
        self._thread.submit(self._write)  # for each: an earlier call may find it, and this one nothing
        done: T = await asyncio.shield(asyncio.wrap_future(entry.future))
        return done

    async def alone(self, function: Callable[[], T]) -> T:
        """What the function returns; it makes transactions of its own."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, function))

    def _write(self) -> None:
        entries = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST))]
        if entries:
            lost = self._commit(entries)
            for entry in entries:
                entry.end(lost)

    def _commit(self, entries: list[_Entry]) -> Exception | None:
        try:
            with self._database.together():
                for entry in entries:
                    entry.begin()
                self._sync()
        except Exception as error:
            return error
        return None
