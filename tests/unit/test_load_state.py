"""How far a load is and how long it still takes, on a clock that the test turns."""

from __future__ import annotations

import pytest

from safelight.protocol import LoadProgress
from safelight.server import load_state
from safelight.server.load_state import LoadState


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(load_state, "time", clock)
    return clock


def _progress(bytes_done: int, bytes_total: int = 100) -> LoadProgress:
    return LoadProgress("weights", "transformer", 1, 7, bytes_done, bytes_total)


def test_a_new_load_has_done_nothing_and_promises_nothing(clock: Clock) -> None:
    load = LoadState()
    assert (load.progress.phase, load.progress.bytes_done, load.is_finished, load.eta_s) == ("starting", 0, False, None)


def test_seconds_run_until_it_is_ready_and_then_stand_still(clock: Clock) -> None:
    load = LoadState()
    clock.now_s += 3
    assert load.seconds == 3
    load.finish({"import": 1.0})
    clock.now_s += 100
    assert load.seconds == 3
    assert load.is_finished
    assert load.phase_seconds == {"import": 1.0}
    assert load.eta_s is None


def test_the_eta_comes_from_the_last_load_and_never_is_negative(clock: Clock) -> None:
    load = LoadState(expected_s=10.0)
    clock.now_s += 4
    load.advance(_progress(1))
    assert load.eta_s == 6
    clock.now_s += 60
    assert load.eta_s == 0


def test_without_history_the_eta_comes_from_the_rate_of_bytes(clock: Clock) -> None:
    load = LoadState()
    clock.now_s += 50
    load.advance(_progress(0))
    assert load.eta_s is None
    clock.now_s += 1
    load.advance(_progress(10))
    clock.now_s += 2
    load.advance(_progress(50))
    assert load.eta_s == pytest.approx(2.0)
    clock.now_s += 2
    load.advance(_progress(100))
    assert load.eta_s == 0
