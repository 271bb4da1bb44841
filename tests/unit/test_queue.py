"""The waiting jobs: bounded, in order, fair, cancellable."""

from __future__ import annotations

from typing import Any

import pytest

from safelight.errors import QueueFull
from safelight.jobs import Job
from safelight.server.queue import JobQueue
from tests.unit.running_front import job


def _queue(limit: int = 10, work_limit: float = 1000.0) -> JobQueue:
    return JobQueue(limit, work_limit)


def _put(queue: JobQueue, name: str, **members: Any) -> Job:
    new = job(name, **members)
    queue.reserve(new, 1)
    queue.put(new)
    return new


def _take_all(queue: JobQueue) -> list[str]:
    return [queue.take("").id for _ in range(len(queue))]


def _position(queue: JobQueue, waiting: Job) -> int:
    ahead = queue.ahead(waiting)
    assert ahead is not None
    return ahead.jobs


def test_jobs_come_out_in_the_order_they_came_in() -> None:
    queue = _queue()
    for name in "abc":
        _put(queue, name)
    assert _take_all(queue) == ["a", "b", "c"]
    assert (len(queue), queue.work) == (0, 0.0)


def test_a_full_queue_refuses_with_the_given_retry_after() -> None:
    queue = _queue(1)
    _put(queue, "a")
    with pytest.raises(QueueFull, match="1 jobs wait already") as caught:
        queue.reserve(job("b"), 17)
    assert caught.value.retry_after_s == 17
    assert len(queue) == 1


def test_a_place_that_is_reserved_is_taken_and_one_given_back_is_free() -> None:
    queue = _queue(1)
    first = job("a")
    queue.reserve(first, 1)
    with pytest.raises(QueueFull):
        queue.reserve(job("b"), 1)
    queue.release(first)
    _put(queue, "b")
    assert _take_all(queue) == ["b"]


def test_more_work_than_the_limit_is_refused_but_one_job_may_be_larger_than_it() -> None:
    queue = _queue(work_limit=1.0)
    _put(queue, "huge", width=1024, height=1024, num_inference_steps=50)
    with pytest.raises(QueueFull, match=r"52 megapixels x steps wait already, .* the limit 1"):
        queue.reserve(job("b"), 1)
    queue.take("")
    _put(queue, "b")


def test_the_head_is_what_take_removes_and_nothing_in_an_empty_queue() -> None:
    queue = _queue()
    assert queue.head("") is None
    jobs = [_put(queue, "a"), _put(queue, "b", owner="other")]
    for waiting in jobs:
        assert queue.head("") is waiting
        assert queue.take("") is waiting
    assert queue.head("") is None


def test_looking_at_the_head_changes_no_turns() -> None:
    queue = _queue()
    for name in ("x0", "x1", "y0"):
        _put(queue, name, owner=name[0])
    assert [waiting.id for _ in range(3) if (waiting := queue.head(""))] == ["x0"] * 3
    assert _take_all(queue) == ["x0", "y0", "x1"]


def test_a_flood_of_one_owner_does_not_starve_another() -> None:
    queue = _queue()
    for number in range(4):
        _put(queue, f"flood {number}", owner="flood")
    _put(queue, "single", owner="single")
    assert _take_all(queue) == ["flood 0", "single", "flood 1", "flood 2", "flood 3"]


def test_an_owner_who_comes_back_has_to_take_turns() -> None:
    queue = _queue()
    for number in range(2):
        for owner in "xyz":
            _put(queue, f"{owner}{number}", owner=owner)
    assert _take_all(queue) == ["x0", "y0", "z0", "x1", "y1", "z1"]


def test_a_higher_priority_goes_first_within_its_owner_only() -> None:
    queue = _queue()
    _put(queue, "low", priority=-1)
    _put(queue, "normal")
    _put(queue, "other", owner="other", priority=-9)
    _put(queue, "high", priority=5)
    _put(queue, "also high", priority=5)
    assert _take_all(queue) == ["high", "other", "also high", "normal", "low"]


def test_a_position_is_the_place_in_which_the_job_will_be_taken() -> None:
    queue = _queue()
    jobs = [_put(queue, "a0", owner="a"), _put(queue, "a1", owner="a"), _put(queue, "b0", owner="b")]
    assert [_position(queue, waiting) for waiting in jobs] == [0, 2, 1]
    assert queue.ahead(job("another")) is None
    order = [waiting.id for waiting in queue]
    assert order == _take_all(queue) == ["a0", "b0", "a1"]


def test_a_job_put_back_is_the_next_one_even_if_the_queue_is_full() -> None:
    queue = _queue(2)
    _put(queue, "a")
    _put(queue, "b")
    taken = queue.take("")
    _put(queue, "c")
    queue.put_back(taken)
    assert _take_all(queue) == ["a", "b", "c"]


def test_a_restored_job_is_let_in_whatever_the_limits() -> None:
    queue = _queue(1)
    for name in "ab":
        queue.restore(job(name))
    assert _take_all(queue) == ["a", "b"]


def test_a_waiting_job_can_be_removed_once() -> None:
    queue = _queue()
    one, other = _put(queue, "a"), _put(queue, "b")
    assert queue.remove(one) is True
    assert queue.remove(one) is False
    assert queue.take("") is other
    assert queue.work == 0.0
