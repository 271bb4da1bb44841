"""Slow is not hung."""

from __future__ import annotations

import pytest

from safelight.server import watchdog as watchdog_module
from safelight.server.watchdog import Watchdog
from tests.unit.running_front import params


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(watchdog_module, "time", made)
    return made


def _run(watchdog: Watchdog, clock: Clock, step_s: float, steps: int = 20, side: int = 1024) -> None:
    watchdog.begin(params(width=side, height=side, num_inference_steps=steps + 1))
    for step in range(1, steps + 1):
        clock.now_s += step_s
        watchdog.step_done(step)


def test_a_job_is_overdue_after_the_least_time_without_a_step(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.begin(params())
    clock.now_s += 9.9
    assert watchdog.left_s > 0
    watchdog.step_done(1)
    clock.now_s += 9.9
    assert watchdog.left_s > 0
    clock.now_s += 0.2
    assert watchdog.left_s < 0


def test_a_model_whose_steps_take_long_gets_ten_times_the_median(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    _run(watchdog, clock, 3.0)
    assert watchdog.limit_s == pytest.approx(30.0)
    clock.now_s += 5 * 3.0
    assert watchdog.left_s > 0


def test_a_larger_picture_gets_more_time_and_a_smaller_one_less(clock: Clock) -> None:
    watchdog = Watchdog(1.0)
    _run(watchdog, clock, 3.0)
    _run(watchdog, clock, 12.0, steps=1, side=2048)
    assert watchdog.limit_s == pytest.approx(120.0)
    watchdog.begin(params(width=512, height=512))
    watchdog.step_done(1)
    assert watchdog.limit_s == pytest.approx(7.5)


def test_text_and_decoding_may_take_as_long_as_three_warm_ups(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.warmed_up(20.0)
    watchdog.begin(params(num_inference_steps=2))
    assert watchdog.limit_s == 60.0
    watchdog.step_done(1)
    assert watchdog.limit_s == 10.0
    watchdog.step_done(2)
    assert watchdog.limit_s == 60.0
