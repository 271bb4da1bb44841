"""The waiting jobs: bounded, in order, cancellable."""

from __future__ import annotations

import asyncio

import pytest

from safelight.errors import QueueFull
from safelight.server.queue import JobQueue
from tests.unit.running_front import job

pytestmark = pytest.mark.anyio


async def test_jobs_come_out_in_the_order_they_came_in() -> None:
    queue = JobQueue(3)
    for name in "abc":
        queue.put(job(name), 1)
    assert [(await queue.take()).id for _ in range(3)] == ["a", "b", "c"]
    assert len(queue) == 0


async def test_a_full_queue_refuses_with_the_given_retry_after() -> None:
    queue = JobQueue(1)
    queue.put(job("a"), 1)
    with pytest.raises(QueueFull, match="1 jobs wait already") as caught:
        queue.put(job("b"), 17)
    assert caught.value.retry_after_s == 17
    assert len(queue) == 1


async def test_take_waits_for_a_job() -> None:
    queue = JobQueue(1)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not taking.done()
    queue.put(job("a"), 1)
    assert (await asyncio.wait_for(taking, 5)).id == "a"


async def test_each_job_goes_to_one_taker_only() -> None:
    queue = JobQueue(2)
    takers = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.put(job("a"), 1)
    queue.put(job("b"), 1)
    done, pending = await asyncio.wait(takers, timeout=0.05)
    assert sorted(taker.result().id for taker in done) == ["a", "b"]
    assert len(pending) == 1
    pending.pop().cancel()


async def test_a_job_put_back_is_the_next_one_even_if_the_queue_is_full() -> None:
    queue = JobQueue(2)
    queue.put(job("a"), 1)
    queue.put(job("b"), 1)
    taken = await queue.take()
    queue.put(job("c"), 1)
    queue.put_back(taken)
    assert [(await queue.take()).id for _ in range(3)] == ["a", "b", "c"]


async def test_a_waiting_job_can_be_removed_once() -> None:
    queue = JobQueue(2)
    one, other = job("a"), job("b")
    queue.put(one, 1)
    queue.put(other, 1)
    assert queue.remove(one) is True
    assert queue.remove(one) is False
    assert await queue.take() is other


async def test_clear_returns_what_waited_and_later_jobs_still_come_out() -> None:
    queue = JobQueue(2)
    queue.put(job("a"), 1)
    queue.put(job("b"), 1)
    assert [waited.id for waited in queue.clear()] == ["a", "b"]
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.put(job("c"), 1)
    assert (await asyncio.wait_for(taking, 5)).id == "c"
