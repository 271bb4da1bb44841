"""The token bucket of each key, with a clock of its own."""

from __future__ import annotations

import pytest

from safelight.errors import RateLimited
from safelight.server.rate_limit import RateLimit


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minutes_work_may_be_asked_for_at_once_and_comes_back_evenly() -> None:
    clock = _Clock()
    limit = RateLimit(60, clock)
    for _ in range(6):
        limit.take("a", 10)
    with pytest.raises(RateLimited, match=r"0\.0 are left") as refused:
        limit.take("a", 10)
    assert refused.value.retry_after_s == 10
    clock.now_s += 9.5
    with pytest.raises(RateLimited):
        limit.take("a", 10)
    clock.now_s += 0.5
    limit.take("a", 10)


def test_keys_do_not_share() -> None:
    limit = RateLimit(10, _Clock())
    limit.take("a", 10)
    limit.take("b", 10)


def test_no_limit_is_none() -> None:
    limit = RateLimit(0, _Clock())
    for _ in range(100):
        limit.take("a", 1e9)
    assert limit.headers("a") == {}


def test_one_large_job_may_have_it_on_credit() -> None:
    clock = _Clock()
    limit = RateLimit(10, clock)
    limit.take("a", 25)
    clock.now_s += 120
    with pytest.raises(RateLimited):
        limit.take("a", 10)
    clock.now_s += 30
    limit.take("a", 10)


def test_what_was_refused_for_another_reason_is_given_back() -> None:
    limit = RateLimit(10, _Clock())
    limit.take("a", 10)
    limit.give_back("a", 10)
    limit.take("a", 10)


def test_the_headers_say_what_is_left_and_when_all_is_back() -> None:
    clock = _Clock()
    limit = RateLimit(60, clock)
    assert limit.headers("a") == {"ratelimit-policy": '"work";q=60;w=60', "ratelimit": '"work";r=60;t=0'}
    limit.take("a", 45)
    assert limit.headers("a")["ratelimit"] == '"work";r=15;t=45'


def test_callers_that_come_once_are_forgotten() -> None:
    clock = _Clock()
    limit = RateLimit(60, clock)
    for number in range(10_000):
        limit.take(str(number), 1)
    clock.now_s += 61
    limit.take("new", 1)
    assert len(limit._buckets) == 1
