"""The moves that a job's status may make."""

from __future__ import annotations

import itertools

import pytest

from safelight.errors import InvalidTransition, OutOfMemory
from safelight.jobs import Job, JobError, JobStatus
from tests.unit.running_front import job

ALLOWED = {
    (JobStatus.QUEUED, JobStatus.RUNNING),
    (JobStatus.QUEUED, JobStatus.FAILED),
    (JobStatus.QUEUED, JobStatus.CANCELLED),
    (JobStatus.RUNNING, JobStatus.QUEUED),
    (JobStatus.RUNNING, JobStatus.SUCCEEDED),
    (JobStatus.RUNNING, JobStatus.FAILED),
    (JobStatus.RUNNING, JobStatus.CANCELLED),
}


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED))
def test_a_move_of_the_table_is_made(before: JobStatus, after: JobStatus) -> None:
    moving = Job("job_1", job().request, status=before)
    moving.move_to(after)
    assert moving.status is after


@pytest.mark.parametrize(("before", "after"), sorted(set(itertools.product(JobStatus, JobStatus)) - ALLOWED))
def test_any_other_move_is_refused_and_changes_nothing(before: JobStatus, after: JobStatus) -> None:
    staying = Job("job_1", job().request, status=before)
    with pytest.raises(InvalidTransition, match=f"job_1: {before} -> {after}"):
        staying.move_to(after)
    assert staying.status is before


def test_three_statuses_are_terminal() -> None:
    assert {status.value for status in JobStatus if status.is_terminal} == {"succeeded", "failed", "cancelled"}


def test_a_new_job_waits_and_has_done_nothing() -> None:
    new = job()
    assert (new.status, new.attempt, new.crashes, new.step) == (JobStatus.QUEUED, 0, 0, 0)


def test_a_job_without_an_outcome_has_no_result() -> None:
    with pytest.raises(InvalidTransition, match="job_1 is queued"):
        _ = job().result


def test_the_result_of_a_job_that_failed_is_what_it_failed_with() -> None:
    failed = job()
    failed.outcome = JobError.of(OutOfMemory("too large"))
    with pytest.raises(OutOfMemory, match="too large"):
        _ = failed.result
