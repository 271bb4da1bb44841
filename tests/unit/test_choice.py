"""Which job begins where: idle devices, shared ones, slow ones, and those that lost their processes."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from safelight.jobs import Job
from safelight.protocol import Fit
from safelight.server.choice import Choice
from safelight.server.device_paces import DevicePaces
from tests.unit.running_front import asked

SHAPE = asked().params.shape


class Device:
    """As much of a ``ModelInstance`` as is looked at. It takes two jobs of one shape at once."""

    def __init__(self, worker_id: int = 0, *jobs: Job, places: int = 2) -> None:
        self.worker_id = worker_id
        self.device = SimpleNamespace(name=f"cuda:{worker_id}")
        self.load = SimpleNamespace(warm={(64, 64): {1}}, fit=None)
        self.follows_a_death = self.has_succeeded = False
        self.jobs = self.jobs_on_device = list(jobs)
        self.places = places

    def admits(self, one: Job) -> bool:
        is_alike = all(mate.params.shape == one.params.shape for mate in self.jobs)
        return len(self.jobs) < self.places and is_alike


def job(name: str = "job", step: int = 0, **members: Any) -> Job:
    return Job(name, asked(**members), step=step)


def large(name: str = "large") -> Job:
    return job(name, width=128)


def serving(devices: Sequence[Device]) -> Any:
    """As much of ``Serving`` as is asked."""
    return SimpleNamespace(
        of=lambda model: devices, admitting=lambda one: (each for each in devices if each.admits(one))
    )


def chosen(devices: Sequence[Device], *line: Job, paces: DevicePaces | None = None) -> tuple[str, int] | None:
    """The job's name and the device's number."""
    found = Choice(paces or DevicePaces()).next(line, serving(devices))
    return None if found is None else (found[0].id, found[1].worker_id)


def uneven(*paces: float) -> DevicePaces:
    """Seconds per unit of work, a device each."""
    made = DevicePaces()
    for _ in range(3):
        for index, pace in enumerate(paces):
            made.measured("", f"cuda:{index}", SHAPE, pace)
    return made


def test_an_idle_device_comes_before_one_that_has_room() -> None:
    assert chosen([Device(0, job(step=3)), Device(1)], job()) == ("job", 1)


def test_an_idle_device_that_knows_the_size_comes_first() -> None:
    devices = [Device(0), Device(1)]
    devices[0].load.warm = {(1024, 1024): {1}}
    assert chosen(devices, job()) == ("job", 1)
    assert chosen(devices[:1], job()) == ("job", 0)


def test_of_those_that_have_room_the_one_with_the_least_left_to_do_gets_it() -> None:
    assert chosen([Device(0, job(step=1)), Device(1, job(step=3)), Device(2, job())], job()) == ("job", 1)
    many_done = Device(0, job(step=3), job(step=3), places=4)
    assert chosen([many_done, Device(1, job())], job()) == ("job", 0)


def test_a_job_that_finds_no_room_waits_and_is_not_overtaken() -> None:
    devices = [Device(0, job()), Device(1, job())]
    assert chosen(devices, large(), job()) is None
    assert chosen(devices) is None
    assert chosen([], job()) is None


def test_a_process_that_came_after_one_that_died_is_the_last_choice() -> None:
    devices = [Device(0), Device(1, job())]
    devices[0].follows_a_death = True
    assert chosen(devices, job()) == ("job", 1)
    assert chosen(devices, large()) == ("large", 0)
    devices[0].has_succeeded = True
    assert chosen(devices, job()) == ("job", 0)


def test_a_device_without_the_memory_is_for_those_behind() -> None:
    devices = [Device(0), Device(1, job())]
    devices[0].load.fit = Fit("full", "bfloat16", 0, max_pixels=6400)
    assert chosen(devices, large(), job()) == ("job", 0)
    assert chosen(devices[:1], large()) == ("large", 0), "it has to say so"
    assert chosen([devices[0], Device(1)], large()) == ("large", 1)


# --- a job that lost its worker -----------------------------------------------------------------------------------


def lost(on: int) -> Job:
    one = job("lost")
    one.crashes, one.lost_on = 1, {on}
    return one


def test_a_job_that_lost_its_worker_goes_to_another_one() -> None:
    assert chosen([Device(0), Device(1)], lost(0)) == ("lost", 1)
    assert chosen([Device(0)], lost(0)) == ("lost", 0)


def test_it_waits_for_another_one_and_others_may_have_the_one_that_it_avoids_meanwhile() -> None:
    full = Device(1, job(), job())
    assert chosen([Device(0), full], lost(0)) is None
    assert chosen([Device(0), full], lost(0), job()) == ("job", 0)


def test_nobody_joins_the_device_that_it_waits_for() -> None:
    assert chosen([Device(0, large()), Device(1, large())], lost(0), large()) == ("large", 0)
    assert chosen([Device(0, large(), large()), Device(1, large())], lost(0), large()) is None


# --- unequal devices ----------------------------------------------------------------------------------------------


def test_the_faster_of_two_idle_devices_gets_it() -> None:
    assert chosen([Device(0), Device(1)], job(), paces=uneven(3.0, 1.0)) == ("job", 1)


def test_a_job_waits_for_a_fast_device_that_would_finish_it_sooner_than_an_idle_slow_one() -> None:
    paces = uneven(1.0, 3.0)
    assert chosen([Device(0, job(), places=1), Device(1)], job("second"), paces=paces) is None
    assert chosen([Device(0, job(), places=1), Device(1)], job("second"), paces=uneven(1.0, 1.2)) == ("second", 1)


def test_it_does_not_wait_for_one_that_has_too_much_to_do() -> None:
    busy = Device(0, job(num_inference_steps=40), places=1)
    assert chosen([busy, Device(1)], job("second"), paces=uneven(1.0, 3.0)) == ("second", 1)
    busy.jobs[0].step = 39
    assert chosen([busy, Device(1)], job("second"), paces=uneven(1.0, 3.0)) is None


def test_a_slow_device_is_for_those_who_would_wait_longer_for_the_fast_one() -> None:
    devices = [Device(0, job(), places=1), Device(1)]
    line = [job(f"{place}") for place in range(6)]
    assert chosen(devices, *line, paces=uneven(1.0, 3.0)) == ("1", 1)
    assert chosen(devices, *line[:1], paces=uneven(1.0, 3.0)) is None


def test_sharing_a_fast_device_may_be_better_than_having_a_slow_one() -> None:
    devices = [Device(0, job(step=2)), Device(1)]
    assert chosen(devices, job(), paces=uneven(1.0, 1.5)) == ("job", 1)
    assert chosen(devices, job(), paces=uneven(1.0, 4.0)) == ("job", 0)


def test_what_is_known_of_one_shape_says_nothing_of_another() -> None:
    assert chosen([Device(0, large(), places=1), Device(1)], large("second"), paces=uneven(1.0, 9.0)) == ("second", 1)


def drawn_at(paces: Sequence[float], count: int, known: DevicePaces) -> list[tuple[float, int]]:
    """When each of so many jobs ends that come at once, and where; devices take one at a time, one step a job."""
    devices = [Device(index, places=1) for index in range(len(paces))]
    line = [Job(str(number), asked(num_inference_steps=1)) for number in range(count)]
    work = line[0].params.work
    running: list[tuple[float, int]] = []
    ended, now_s = [], 0.0
    while line or running:
        while (found := Choice(known).next(line, serving(devices))) is not None:
            one, device = found
            line.remove(one)
            devices[device.worker_id].jobs.append(one)
            running.append((now_s + work * paces[device.worker_id], device.worker_id))
        now_s, index = min(running)
        running.remove((now_s, index))
        devices[index].jobs.clear()
        ended.append((now_s, index))
    return ended


def test_a_fleet_with_a_slow_device_ends_sooner_and_no_later_than_without_it() -> None:
    aware = drawn_at([1.0, 1.0, 4.0], 21, uneven(1.0, 1.0, 4.0))
    unaware = drawn_at([1.0, 1.0, 4.0], 21, DevicePaces())
    without = drawn_at([1.0, 1.0], 21, DevicePaces())
    assert any(index == 2 for _, index in aware)
    assert aware[-1][0] <= unaware[-1][0]
    assert aware[-1][0] < without[-1][0]
    assert all(mine[0] <= theirs[0] + 1e-9 for mine, theirs in zip(aware, without, strict=True))
    assert drawn_at([1.0, 1.0, 4.0], 3, uneven(1.0, 1.0, 4.0))[-1][1] < 2
    assert drawn_at([1.0, 1.0, 4.0], 3, DevicePaces())[-1][1] == 2


# --- what is known of devices -------------------------------------------------------------------------------------


def test_devices_are_alike_until_several_jobs_say_otherwise() -> None:
    paces = DevicePaces()
    for device, pace in (("a", 1.0), ("b", 5.0), ("a", 1.0)):
        paces.measured("m", device, SHAPE, pace)
        assert not paces.are_uneven("m", SHAPE)
    assert paces.pace("m", "b", SHAPE) == 1.0
    paces.measured("m", "b", SHAPE, 5.0)
    assert paces.are_uneven("m", SHAPE)
    assert not paces.are_uneven("other", SHAPE)
    assert (paces.pace("m", "a", SHAPE), paces.pace("m", "b", SHAPE), paces.pace("m", "c", SHAPE)) == (1.0, 5.0, 1.0)
    assert paces.pace("other", "a", SHAPE) is None


def test_a_first_use_that_is_slow_is_forgotten() -> None:
    paces = uneven(1.0)
    for pace in (20.0, 1.0, 1.0):
        paces.measured("", "cuda:1", SHAPE, pace)
    assert not paces.are_uneven("", SHAPE)


def test_the_fastest_that_becomes_slow_is_not_the_fastest_any_more() -> None:
    paces = uneven(1.0, 2.0)
    for _ in range(3):
        paces.measured("", "cuda:0", SHAPE, 8.0)
    for _ in range(3):
        paces.measured("", "cuda:1", SHAPE, 2.0)
    assert paces.pace("", "new", SHAPE) == 2.0
    assert paces.are_uneven("", SHAPE)


def test_a_slow_device_is_tried_again_after_a_while() -> None:
    now_s = 0.0
    paces = DevicePaces(lambda: now_s)
    for _ in range(2):
        for device, pace in (("cuda:0", 1.0), ("cuda:1", 3.0)):
            paces.measured("", device, SHAPE, pace)
    busy = [Device(0, job(), places=1), Device(1)]
    assert chosen(busy, job("second"), paces=paces) is None
    now_s = 3600.0
    assert chosen(busy, job("second"), paces=paces) == ("second", 1)


@pytest.mark.parametrize("pace", [1.2, 1 / 1.2])
def test_small_differences_are_none(pace: float) -> None:
    assert not uneven(1.0, pace).are_uneven("", SHAPE)
