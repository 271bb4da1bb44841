"""The wake-up call: everybody wakes, a timeout says so, nothing between two looks is lost."""

from __future__ import annotations

import asyncio

import pytest

from safelight.server.changes import Changes

pytestmark = pytest.mark.anyio


async def test_an_announcement_wakes_everyone_who_waits() -> None:
    changes = Changes()
    waiting = [asyncio.create_task(changes.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    changes.announce()
    assert await asyncio.gather(*waiting) == [True, True, True]


async def test_an_announcement_before_the_wait_does_not_end_it() -> None:
    changes = Changes()
    changes.announce()
    assert await changes.wait(0.01) is False


async def test_the_count_tells_who_looked_away_that_something_happened() -> None:
    changes = Changes()
    seen = changes.count
    changes.announce()
    changes.announce()
    assert changes.count == seen + 2


async def test_a_wait_can_be_cancelled_without_harm_to_others() -> None:
    changes = Changes()
    one, other = asyncio.create_task(changes.wait()), asyncio.create_task(changes.wait())
    await asyncio.sleep(0)
    one.cancel()
    changes.announce()
    assert await other
