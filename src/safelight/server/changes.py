"""Wakes everyone who follows the state of the server."""

from __future__ import annotations

import asyncio


class Changes:
    """A wake-up call without a message: followers look at the state themselves, so none can misorder one.

    Who awaits anything else between looking and ``wait`` compares ``count``, or misses what came in between. There are
    kinds: what is announced here is a change for those as well who follow ``wider``, which is itself if there is none.
    """

    def __init__(self, wider: Changes | None = None) -> None:
        self.count = 0
        self.wider = wider or self
        self._next = asyncio.Event()

    @property
    def widest(self) -> Changes:
        """Those of whoever wants to know everything."""
        return self if self.wider is self else self.wider.widest

    def announce(self) -> None:
        """Something changed."""
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()
        if self.wider is not self:
            self.wider.announce()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Returns after the next announcement (true) or after ``timeout_s`` (false)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._next.wait()
        except TimeoutError:
            return False
        return True
