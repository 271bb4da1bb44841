"""Who may begin beside whom."""

from __future__ import annotations

from typing import Any

import pytest

from safelight.errors import WorkerCrashed
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.params import LoraUse
from safelight.protocol import JobProgress
from safelight.server.worker_jobs import WorkerJobs
from tests.unit.running_front import job, params

pytestmark = pytest.mark.anyio

CARD = ModelCard(id="test/tiny")
ROW_TOKENS = CARD.tokens(params())


def _with(*jobs: Job) -> WorkerJobs:
    made = WorkerJobs()
    for one in jobs:
        made.reserve(one)
    return made


def _crashed(name: str = "crashed") -> Job:
    one = job(name)
    one.crashes = 1
    return one


def _ignore(progress: JobProgress) -> None:
    pass


@pytest.mark.parametrize("members", [{}, {"num_images": 10}, {"width": 512, "true_cfg_scale": 4.0}])
def test_alone_any_job_may_begin(members: dict[str, Any]) -> None:
    assert _with().admit(job(**members), CARD, 0)
    assert _with().admit(_crashed(), CARD, 0)


@pytest.mark.parametrize(
    ("first", "second", "rows", "may_join"),
    [
        ({}, {}, 2, True),
        ({}, {"num_inference_steps": 9, "seed": 7, "prompt": "another"}, 2, True),
        ({}, {}, 1, False),
        ({}, {}, 0, False),
        ({"num_images": 3}, {}, 4, True),
        ({"num_images": 3}, {}, 3, False),
        ({}, {"true_cfg_scale": 2.0}, 3, True),
        ({}, {"true_cfg_scale": 2.0}, 2, False),
        ({}, {"width": 128}, 100, False),
        ({}, {"height": 32}, 100, False),
        ({}, {"max_sequence_length": 32}, 100, False),
        ({}, {"loras": (LoraUse("a"),)}, 100, False),
        ({"loras": (LoraUse("a"),)}, {"loras": (LoraUse("a", 0.5),)}, 100, False),
        ({"loras": (LoraUse("a"),)}, {"loras": (LoraUse("a"),)}, 2, True),
    ],
)
def test_jobs_of_one_shape_share_as_many_rows_as_the_device_carries(
    first: dict[str, Any], second: dict[str, Any], rows: int, may_join: bool
) -> None:
    assert _with(job(**first)).admit(job("job_2", **second), CARD, rows * ROW_TOKENS) is may_join


def test_a_job_that_lost_a_worker_is_joined_by_nobody_and_joins_nobody() -> None:
    assert not _with(_crashed()).admit(job(), CARD, 10**9)
    assert not _with(job()).admit(_crashed(), CARD, 10**9)


def test_a_job_that_lost_a_worker_is_alone_to_its_end() -> None:
    crashed = _crashed()
    jobs = _with(crashed)
    jobs.drawn(crashed)
    assert not jobs.admit(job(), CARD, 10**9)
    jobs.release(crashed)
    assert jobs.admit(job(), CARD, 10**9)


def test_what_is_drawn_is_no_hindrance_to_any_job_but_one_that_lost_a_worker() -> None:
    drawn = job()
    jobs = _with(drawn)
    jobs.drawn(drawn)
    assert jobs.on_device == []
    assert jobs.admit(job("job_2", width=128, num_images=10), CARD, 0)
    assert not jobs.admit(_crashed(), CARD, 10**9)
    jobs.release(drawn)
    assert jobs.admit(_crashed(), CARD, 10**9)


def test_pictures_that_are_not_encoded_yet_are_bounded() -> None:
    many = [job(f"job_{number}") for number in range(8)]
    jobs = _with(*many)
    for one in many:
        jobs.drawn(one)
    assert not jobs.admit(job(), CARD, 10**9)
    jobs.release(many[3])
    assert jobs.admit(job(), CARD, 10**9)


async def test_a_message_finds_its_job_by_id_and_attempt_until_the_outcome() -> None:
    one, other = job(), job("job_2")
    one.attempt = 2
    jobs = _with(one, other)
    assert jobs.find("job_1", 2) is None
    running = jobs.begin(one, _ignore)
    assert jobs.find("job_1", 2) is running
    assert jobs.find("job_1", 1) is None
    assert jobs.find("job_2", 0) is None
    running.outcome.cancel()
    assert jobs.find("job_1", 2) is None


async def test_all_places_are_lost_with_the_process() -> None:
    begun, waits = job(), job("job_2")
    jobs = _with(begun, waits)
    running = jobs.begin(begun, _ignore)
    jobs.lose(WorkerCrashed("it died"))
    assert list(jobs) == []
    with pytest.raises(WorkerCrashed, match="it died"):
        await running.outcome
    for one in (begun, waits):
        jobs.release(one)
