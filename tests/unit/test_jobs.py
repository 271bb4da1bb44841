"""The moves that a job's status may make."""

from __future__ import annotations

import itertools

import pytest

from safelight.errors import InvalidTransition
from safelight.jobs import Job, JobStatus
from tests.unit.running_front import job

ALLOWED = {
    (JobStatus.QUEUED, JobStatus.RUNNING),
    (JobStatus.QUEUED, JobStatus.FAILED),
    (JobStatus.QUEUED, JobStatus.CANCELLED),
    (JobStatus.RUNNING, JobStatus.SUCCEEDED),
    (JobStatus.RUNNING, JobStatus.FAILED),
    (JobStatus.RUNNING, JobStatus.CANCELLED),
}


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED))
def test_a_move_of_the_table_is_made(before: JobStatus, after: JobStatus) -> None:
    moving = Job("job_1", job().params, status=before)
    moving.move_to(after)
    assert moving.status is after


@pytest.mark.parametrize(("before", "after"), sorted(set(itertools.product(JobStatus, JobStatus)) - ALLOWED))
def test_any_other_move_is_refused_and_changes_nothing(before: JobStatus, after: JobStatus) -> None:
    staying = Job("job_1", job().params, status=before)
    with pytest.raises(InvalidTransition, match=f"job_1: {before} -> {after}"):
        staying.move_to(after)
    assert staying.status is before


def test_three_statuses_are_terminal() -> None:
    assert {status.value for status in JobStatus if status.is_terminal} == {"succeeded", "failed", "cancelled"}


def test_a_new_job_waits_and_has_done_nothing() -> None:
    new = job()
    assert (new.status, new.attempt, new.step) == (JobStatus.QUEUED, 0, 0)
