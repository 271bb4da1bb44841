"""Slow is not hung."""

from __future__ import annotations

import math

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
    """All steps of a job but the last."""
    watchdog.begin("job_1", params(width=side, height=side, num_inference_steps=steps + 1))
    for step in range(1, steps + 1):
        clock.now_s += step_s
        watchdog.step_done("job_1", step)


def test_without_a_job_nothing_is_ever_overdue(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    _run(watchdog, clock, 1.0)
    watchdog.end("job_1")
    clock.now_s += 1e9
    assert watchdog.left_s == math.inf


def test_a_job_is_overdue_after_the_least_time_without_a_step(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.begin("job_1", params())
    clock.now_s += 9.9
    assert watchdog.left_s > 0
    watchdog.step_done("job_1", 1)
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


@pytest.mark.parametrize("images", [1, 2, 4])
def test_images_that_share_their_steps_count_as_one(images: int, clock: Clock) -> None:
    watchdog = Watchdog(1.0)
    watchdog.begin("job_1", params(width=1024, height=1024, num_inference_steps=10, num_images=images))
    for step in range(1, 6):
        clock.now_s += 3.0
        for image in range(1, images + 1):
            watchdog.step_done("job_1", (step - 1) * images + image)
    assert watchdog.limit_s == pytest.approx(30.0, rel=0.1)


def test_images_one_after_the_other_give_the_time_of_one_step(clock: Clock) -> None:
    watchdog = Watchdog(1.0)
    watchdog.begin("job_1", params(width=1024, height=1024, num_inference_steps=10, num_images=4))
    for step in range(1, 30):
        clock.now_s += 3.0
        watchdog.step_done("job_1", step)
    assert watchdog.limit_s == pytest.approx(30.0, rel=0.1)


def test_a_larger_picture_gets_more_time_and_a_smaller_one_less(clock: Clock) -> None:
    watchdog = Watchdog(1.0)
    _run(watchdog, clock, 3.0)
    watchdog.end("job_1")
    _run(watchdog, clock, 12.0, steps=1, side=2048)
    assert watchdog.limit_s == pytest.approx(120.0, rel=0.1)
    watchdog.end("job_1")
    watchdog.begin("job_2", params(width=512, height=512))
    watchdog.step_done("job_2", 1)
    assert watchdog.limit_s == pytest.approx(7.5, rel=0.1)


def test_text_and_decoding_may_take_as_long_as_three_warm_ups(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.warmed_up(20.0)
    watchdog.begin("job_1", params(num_inference_steps=2))
    assert watchdog.limit_s == 60.0
    watchdog.step_done("job_1", 1)
    assert watchdog.limit_s == 10.0
    watchdog.step_done("job_1", 2)
    assert watchdog.limit_s == 60.0


# --- several jobs -------------------------------------------------------------------------------------------------


def test_a_hang_of_both_is_found(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    for name in ("job_1", "job_2"):
        watchdog.begin(name, params())
        watchdog.step_done(name, 1)
    clock.now_s += 9.9
    assert watchdog.left_s > 0
    clock.now_s += 0.2
    assert watchdog.left_s < 0


def test_a_step_of_one_is_a_sign_of_life_for_both_also_while_the_other_begins_slowly(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.begin("job_1", params(num_inference_steps=50))
    watchdog.begin("job_2", params())
    for step in range(1, 40):
        clock.now_s += 9.0
        watchdog.step_done("job_1", step)
        assert watchdog.left_s > 0


def test_while_the_second_encodes_its_text_the_first_need_make_no_step(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.warmed_up(20.0)
    watchdog.begin("job_1", params())
    watchdog.step_done("job_1", 1)
    watchdog.begin("job_2", params())
    assert watchdog.limit_s == 60.0
    watchdog.step_done("job_2", 1)
    assert watchdog.limit_s == 10.0


def test_whoever_joins_jobs_that_hang_does_not_hide_it(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.begin("job_1", params())
    watchdog.step_done("job_1", 1)
    for number in range(2, 5):
        clock.now_s += 6.0
        watchdog.begin(f"job_{number}", params())
    assert watchdog.left_s < 0


def test_the_first_step_without_one_that_left_may_take_as_long_as_a_first_use(clock: Clock) -> None:
    watchdog = Watchdog(10.0)
    watchdog.warmed_up(20.0)
    for name in ("job_1", "job_2"):
        watchdog.begin(name, params())
        watchdog.step_done(name, 1)
    watchdog.end("job_1")
    assert watchdog.limit_s == 60.0
    watchdog.step_done("job_2", 2)
    assert watchdog.limit_s == 10.0
