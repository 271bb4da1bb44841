"""Which pictures make a step together, and that none harms another; over the stub's model, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from safelight.engine.batch import Batch
from safelight.engine.drawing_job import DrawingJob
from safelight.engine.stub import StubDrawing, StubModel, StubShot, draw
from safelight.errors import BadOutput, JobCancelled, OutOfMemory
from safelight.params import LoraUse
from tests.unit.running_front import params


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_STEP_S", "0")


def _batch(model: StubModel | None = None, rows: int = 8) -> tuple[Batch, StubModel]:
    model = model or StubModel()
    batch = Batch(model)
    batch.max_tokens = rows * model.tokens(params())
    return batch, model


def _join(batch: Batch, **changes: Any) -> DrawingJob:
    job = DrawingJob(params(**changes))
    batch.join(job)
    return job


def _finish(batch: Batch, *jobs: DrawingJob) -> None:
    for _ in range(1000):
        if all(job.is_over for job in jobs):
            return
        batch.advance()
    raise AssertionError("the batch does not end")


def _steps(model: StubModel) -> list[list[int]]:
    """The seeds that were moved together, step by step."""
    return [[drawing.params.seed for drawing in group] for group in model.steps]


def test_jobs_of_one_shape_share_steps_and_each_keeps_its_own_count() -> None:
    batch, model = _batch()
    short, long = _join(batch, seed=1, num_inference_steps=2), _join(batch, seed=2, num_inference_steps=4)
    _finish(batch, short, long)
    assert _steps(model) == [[1, 2], [1, 2], [2], [2]]
    for job in (short, long):
        assert job.outcome.result().images[0].tobytes() == draw(job.params, job.params.seed).tobytes()


def test_a_job_joins_between_two_steps_of_another() -> None:
    batch, model = _batch()
    first = _join(batch, seed=1, num_inference_steps=4)
    batch.advance()
    second = _join(batch, seed=2, num_inference_steps=2)
    _finish(batch, first, second)
    assert _steps(model) == [[1], [1, 2], [1, 2], [1]]


def test_pictures_of_one_job_share_steps_and_come_in_the_order_of_their_seeds() -> None:
    steps: list[tuple[int, int]] = []
    batch, model = _batch()
    job = DrawingJob(params(num_images=3, num_inference_steps=2), lambda *step: steps.append(step))
    batch.join(job)
    _finish(batch, job)
    assert len(model.steps) == 2
    assert steps == [(step, 6) for step in range(1, 7)]
    assert [image.tobytes() for image in job.outcome.result().images] == [
        draw(job.params, seed).tobytes() for seed in job.params.seeds
    ]


def test_another_shape_waits_and_the_oldest_goes_first() -> None:
    batch, model = _batch()
    jobs = [_join(batch, seed=seed, width=width, num_inference_steps=1) for seed, width in ((1, 64), (2, 128), (3, 64))]
    _finish(batch, *jobs)
    assert _steps(model) == [[1, 3], [2]]


def test_only_jobs_with_the_same_adapters_share_steps() -> None:
    batch, model = _batch()
    asked = [(), (LoraUse("a"),), (), (LoraUse("a", 0.5),), (LoraUse("a"),), (LoraUse("a"), LoraUse("b"))]
    jobs = [_join(batch, seed=seed, loras=loras, num_inference_steps=1) for seed, loras in enumerate(asked)]
    _finish(batch, *jobs)
    assert _steps(model) == [[0, 2], [1, 4], [3], [5]]


@pytest.mark.parametrize("by", ["tokens", "rows"])
def test_no_more_rows_than_allowed_share_a_step(by: str) -> None:
    batch, model = _batch(rows=2 if by == "tokens" else 8)
    batch.max_rows = 0 if by == "tokens" else 2
    jobs = [_join(batch, seed=seed, num_inference_steps=1) for seed in range(5)]
    _finish(batch, *jobs)
    assert _steps(model) == [[0, 1], [2, 3], [4]]


def test_true_cfg_takes_two_rows() -> None:
    batch, model = _batch(rows=3)
    jobs = [_join(batch, seed=seed, true_cfg_scale=2.0, num_inference_steps=1) for seed in range(2)]
    _finish(batch, *jobs)
    assert _steps(model) == [[0], [1]]


def test_a_picture_too_large_for_the_limit_is_made_alone() -> None:
    batch, model = _batch(rows=0)
    jobs = [_join(batch, seed=seed, num_inference_steps=1) for seed in range(2)]
    _finish(batch, *jobs)
    assert _steps(model) == [[0], [1]]


def test_a_cancelled_job_leaves_within_a_step_and_its_mate_goes_on() -> None:
    batch, model = _batch()
    leaving, staying = _join(batch, seed=1, num_inference_steps=9), _join(batch, seed=2, num_inference_steps=4)
    batch.advance()
    leaving.cancelled.set()
    _finish(batch, leaving, staying)
    assert isinstance(leaving.outcome.exception(), JobCancelled)
    assert _steps(model) == [[1, 2], [2], [2], [2]]
    assert staying.outcome.result().images


def test_a_job_that_cannot_begin_fails_alone() -> None:
    batch, _ = _batch()
    bad, good = _join(batch, prompt="out of memory"), _join(batch, seed=2)
    _finish(batch, bad, good)
    assert isinstance(bad.outcome.exception(), OutOfMemory)
    assert good.outcome.result().images


def test_a_job_whose_callback_fails_does_not_take_its_mates_along() -> None:
    batch, _ = _batch()

    def on_step(step: int, total: int) -> None:
        raise RuntimeError("nobody listens")

    bad, good = DrawingJob(params(seed=1), on_step), _join(batch, seed=2)
    batch.join(bad)
    _finish(batch, bad, good)
    assert "nobody listens" in str(bad.outcome.exception())
    assert good.outcome.result().images


class _Poisoned(StubModel):
    """Every step fails in which the picture of seed 1 is, or that has more rows than fit."""

    def __init__(self, reason: str, fitting_rows: int = 99) -> None:
        super().__init__()
        self.freed = 0
        self._reason = reason
        self._fitting_rows = fitting_rows

    def step(self, drawings: Sequence[StubDrawing]) -> list[StubShot | None]:
        if any(drawing.params.seed == 1 for drawing in drawings) or len(drawings) > self._fitting_rows:
            raise RuntimeError(self._reason)
        return super().step(drawings)

    def free_memory(self) -> None:
        self.freed += 1


def test_of_a_step_that_fails_only_the_guilty_job_fails() -> None:
    batch, model = _batch(_Poisoned("a kernel does not like it"))
    jobs = [_join(batch, seed=seed, num_inference_steps=2) for seed in range(3)]
    _finish(batch, *jobs)
    assert [job.outcome.exception() is None for job in jobs] == [True, False, True]
    assert _steps(model) == [[0], [0], [2], [2]]


def test_a_step_that_does_not_fit_is_made_one_by_one_and_smaller_from_then_on() -> None:
    batch, model = _batch(_Poisoned("CUDA out of memory", fitting_rows=2))
    jobs = [_join(batch, seed=seed, num_inference_steps=1) for seed in range(2, 6)]
    _finish(batch, *jobs)
    assert all(job.outcome.result().images for job in jobs)
    assert batch.max_tokens == 2 * model.tokens(params())
    more = [_join(batch, seed=seed, num_inference_steps=1) for seed in range(6, 10)]
    _finish(batch, *more)
    assert _steps(model)[-2:] == [[6, 7], [8, 9]]


class _Broken(StubModel):
    def decode(self, drawing: StubDrawing) -> StubShot:
        if drawing.params.seed == 1:
            raise BadOutput("no picture")
        return super().decode(drawing)


def test_a_picture_that_cannot_be_decoded_fails_alone() -> None:
    batch, _ = _batch(_Broken())
    bad, good = _join(batch, seed=1), _join(batch, seed=2)
    _finish(batch, bad, good)
    assert isinstance(bad.outcome.exception(), BadOutput)
    assert good.outcome.result().images


class _Device(StubModel):
    """Works at launches in their order; ``events`` has what was launched and what was waited for."""

    lookahead = 1

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self._launched = 0

    def step(self, drawings: Sequence[StubDrawing]) -> list[StubShot | None]:
        self._launched += 1
        self.events.append(f"launch {self._launched}")
        return super().step(drawings)

    def decode(self, drawing: StubDrawing) -> StubShot:
        self._launched += 1
        self.events.append(f"decode {self._launched}")
        return super().decode(drawing)

    def mark(self) -> Callable[[], None]:
        number = self._launched
        return lambda: self.events.append(f"wait {number}")


def test_the_next_step_is_launched_before_the_last_one_is_waited_for() -> None:
    batch, model = _batch(_Device())
    assert isinstance(model, _Device)
    job = _join(batch, num_inference_steps=3)
    _finish(batch, job)
    assert model.events == ["launch 1", "launch 2", "wait 1", "launch 3", "wait 2", "decode 4", "wait 3", "wait 4"]


def test_a_size_is_warm_after_its_second_step() -> None:
    warm: list[tuple[int, int, int]] = []
    model = StubModel()
    batch = Batch(model, lambda *use: warm.append(use))
    batch.max_tokens = 4 * model.tokens(params())
    _finish(batch, _join(batch, width=64, height=64, num_images=2, num_inference_steps=1))
    assert warm == []
    _finish(batch, _join(batch, width=64, height=64, num_images=2, num_inference_steps=3))
    assert warm == [(64, 64, 2)]


def test_a_defect_ends_every_job() -> None:
    batch, _ = _batch()
    jobs = [_join(batch, num_inference_steps=9)]
    batch.advance()
    jobs.append(_join(batch))
    batch.fail(RuntimeError("a defect"))
    assert all("a defect" in str(job.outcome.exception()) for job in jobs)
