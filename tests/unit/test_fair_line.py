"""What is before a job is known by sums, not by a walk: the same numbers, for work that does not grow with the line."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from safelight.jobs import Job
from safelight.params import GenerationParams
from safelight.server.fair_line import FairLine
from safelight.server.running_sums import RunningSums
from tests.unit.running_front import job


def test_sums_are_those_of_a_plain_list() -> None:
    source, sums, values = random.Random(1), RunningSums(), list[float]()
    for _ in range(500):
        if not values or source.random() < 0.5:
            value = float(source.randrange(100))
            assert sums.append(value) == len(values)
            values.append(value)
        else:
            number, change = source.randrange(len(values)), float(source.randrange(-50, 50))
            sums.add(number, change)
            values[number] += change
        number = source.randrange(len(values) + 1)
        assert sums.before(number) == sum(values[:number])
    assert len(sums) == len(values)


def _some_job(source: random.Random, name: str, owners: str) -> Job:
    size = source.choice((64, 128, 256))
    made = job(name, owner=source.choice(owners), priority=source.choice((0, 0, 0, 5, -5)), width=size, height=size)
    made.created_s = float(name)
    return made


def _changed(line: FairLine, source: random.Random, number: int, owners: str, taken: list[Job]) -> None:
    match source.random():
        case share if share < 0.6:
            line.put(_some_job(source, str(number), owners))
        case share if share < 0.75 and len(line):
            taken.append(line.take())
        case share if share < 0.85 and taken:
            line.put_back(taken.pop(source.randrange(len(taken))))
        case _ if len(line):
            assert line.remove(source.choice(list(line)))


def test_of_one_owner_everything_before_a_job_is_known_exactly() -> None:
    source, line, taken = random.Random(2), FairLine(), list[Job]()
    for number in range(600):
        _changed(line, source, number, "a", taken)
        if number % 10:
            continue
        for place, waiting in enumerate(order := list(line)):
            ahead = line.ahead(waiting)
            assert ahead is not None and ahead.jobs == place
            assert ahead.work == pytest.approx(sum(other.params.work for other in order[:place]), abs=1e-9)
    assert len(line) > 50 and line.work == pytest.approx(sum(waiting.params.work for waiting in line))


def test_of_several_owners_no_more_are_said_to_be_before_a_job_than_there_are_in_its_round() -> None:
    source, line, taken, is_exact = random.Random(3), FairLine(), list[Job](), 0
    for number in range(600):
        _changed(line, source, number, "aaaabbc", taken)
        for place, waiting in enumerate(line):
            ahead = line.ahead(waiting)
            assert ahead is not None and place <= ahead.jobs <= place + 2, "three owners"
            is_exact += ahead.jobs == place
            assert ahead.work <= line.work + 1e-9
    assert is_exact > 0.9 * sum(range(100)), "nearly always it is the place"


def test_the_first_has_nothing_before_it_and_the_last_everything() -> None:
    line = FairLine()
    jobs = [job(str(number), owner="abc"[number % 3]) for number in range(30)]
    for waiting in jobs:
        line.put(waiting)
    first, last = line.ahead(jobs[0]), line.ahead(jobs[-1])
    assert first is not None and (first.jobs, first.work) == (0, 0.0)
    assert last is not None and last.jobs == 29
    assert last.work == pytest.approx(29 * jobs[0].params.work)


def test_those_that_came_back_are_in_the_order_of_their_acceptance_whoever_came_back_first() -> None:
    line = FairLine()
    for number in range(4):
        waiting = job(str(number))
        waiting.created_s = float(number)
        line.put(waiting)
    for taken in [line.take() for _ in range(3)]:
        line.put_back(taken)
    assert [waiting.id for waiting in line] == ["0", "1", "2", "3"]


def test_a_line_that_is_never_empty_does_not_grow() -> None:
    line = FairLine()
    for number in range(5000):
        line.put(job(str(number)))
        if number >= 10:
            line.take()
    (lane,) = line._turns[0]._lanes.values()
    assert len(line) == 10 and len(lane._counts) < 200


def _works_read(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> int:
    work, count = GenerationParams.work, 0

    def counted(params: GenerationParams) -> float:
        nonlocal count
        count += 1
        return float(work.fget(params))  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(GenerationParams, "work", property(counted))
        action()
    return count


@pytest.mark.parametrize("owners", [1, 50, 3000])
def test_a_job_costs_the_same_however_many_wait(owners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at another job would read its work."""

    def come_and_go(line: FairLine, name: str) -> int:
        new = job(name, owner="0")

        def turn() -> None:
            line.put(new)
            line.ahead(new)
            line.put_back(line.take())
            line.ahead(new)
            line.remove(new)

        return _works_read(monkeypatch, turn)

    empty, full = FairLine(), FairLine()
    for number in range(3000):
        full.put(job(str(number), owner=str(number % owners)))
    assert max(come_and_go(full, "new"), come_and_go(empty, "new")) <= 20
