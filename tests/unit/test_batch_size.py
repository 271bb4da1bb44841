"""How many rows are found to gain, on devices whose step times are known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from safelight.engine.batch_size import measure_batch_tokens
from safelight.engine.stub import StubDrawing, StubModel, StubShot
from safelight.errors import JobCancelled
from tests.unit.running_front import params


class _Timed(StubModel):
    """``seconds(rows)`` is what a step takes, on a clock of its own."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.now_s = 0.0
        self.rows_tried: list[int] = []
        self._seconds = seconds

    def step(self, drawings: Sequence[StubDrawing]) -> list[StubShot | None]:
        self.now_s += self._seconds(len(drawings))
        self.rows_tried.append(len(drawings))
        return []


def _measured_rows(model: _Timed, monkeypatch: pytest.MonkeyPatch, max_rows: int = 0) -> float:
    monkeypatch.setattr("time.perf_counter", lambda: model.now_s)
    return measure_batch_tokens(model, params(), max_rows, threading.Event()) / model.tokens(params())


def test_a_device_that_is_busy_with_one_row_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _measured_rows(_Timed(lambda rows: 0.1 * rows), monkeypatch) == 1


def test_rows_are_added_for_as_long_as_each_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _measured_rows(_Timed(lambda rows: max(0.1, 0.025 * rows)), monkeypatch) == 4


def test_where_launching_is_all_that_takes_time_as_many_as_are_tried_share_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _measured_rows(_Timed(lambda rows: 0.01), monkeypatch) == 16


def test_the_setting_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Timed(lambda rows: 0.01)
    assert _measured_rows(model, monkeypatch, max_rows=3) == 2
    assert max(model.rows_tried) == 2


def test_a_slow_device_is_asked_for_no_more_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Timed(lambda rows: 30.0)
    assert _measured_rows(model, monkeypatch) == 1
    assert model.rows_tried == [1, 1]


def test_what_first_uses_cost_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def seconds(rows: int) -> float:
        first = rows not in seen
        seen.add(rows)
        return 1.0 if first else max(0.1, 0.05 * rows)

    assert _measured_rows(_Timed(seconds), monkeypatch) == 2


def test_rows_that_do_not_fit_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(rows: int) -> float:
        if rows > 2:
            raise RuntimeError("CUDA out of memory")
        return 0.01

    assert _measured_rows(_Timed(seconds), monkeypatch) == 2


def test_a_cancelled_warm_up_stops_it() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelled):
        measure_batch_tokens(StubModel(), params(), 0, cancelled)
