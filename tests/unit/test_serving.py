"""Which instance gets a job, found without asking all of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from safelight.config import Config
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.model_list import ModelEntry
from safelight.server import serving as serving_module
from safelight.server.changes import Changes
from safelight.server.cluster import LocalCluster
from safelight.server.devices import Device
from safelight.server.metrics import Metrics
from safelight.server.model_instance import ModelInstance
from safelight.server.served_model import ServedModel
from safelight.server.serving import Serving
from safelight.server.team import Team
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState
from tests.unit.running_front import job, params

CARD = ModelCard(id="card", max_sequence_length=64)
TWO_ROWS = 2 * CARD.tokens(params())


class Fleet:
    """Devices that all have one model, as if they were ready; no process is started."""

    def __init__(self, count: int, batch_tokens: int = TWO_ROWS) -> None:
        config = Config(data_dir=Path("x"))
        self.model = ServedModel(ModelEntry(model="safelight/stub", name="m"), config)
        self.changes = Changes(Changes(Changes()))
        self.workers = [self._worker(number, config, batch_tokens) for number in range(count)]
        self.serving = Serving(self.workers, self.changes)

    def _worker(self, number: int, config: Config, batch_tokens: int) -> Worker:
        device, metrics = Device(f"cpu:{number}", "cpu", {}), Metrics(dict)
        worker = Worker(number, device, config, self.model, self.changes, metrics, LocalCluster([device]))
        instance = ModelInstance(number, device, self.model, self.changes, metrics, LocalCluster([device]))
        instance._card, instance.load.batch_tokens = CARD, batch_tokens
        instance.state = WorkerState.READY
        worker.current = instance
        return worker

    @property
    def instances(self) -> list[ModelInstance]:
        return [instance for worker in self.workers for instance in worker.instances]

    def asked_one_by_one(self, asked: Job) -> list[ModelInstance]:
        admitting = [instance for instance in self.instances if instance.admits(asked)]
        return sorted(admitting, key=lambda each: (len(each.jobs_on_device), len(each.jobs), each.worker_id))

    def begin(self, asked: Job) -> ModelInstance | None:
        if (instance := next(self.serving.admitting(asked), None)) is not None:
            self.serving.reserve(asked, Team([instance]))
        return instance


@pytest.fixture
def asked_instances(monkeypatch: pytest.MonkeyPatch) -> list[ModelInstance]:
    """Those that are asked whether they admit a job, each time."""
    seen: list[ModelInstance] = []
    admits = ModelInstance.admits

    def counted(instance: ModelInstance, asked: Job) -> bool:
        seen.append(instance)
        return admits(instance, asked)

    monkeypatch.setattr(ModelInstance, "admits", counted)
    return seen


def test_they_are_those_that_admit_the_job_least_busy_first_whatever_happens() -> None:
    source, fleet, running = random.Random(1), Fleet(6), list[Job]()
    for number in range(1500):
        match source.random():
            case share if share < 0.5:
                size = source.choice((64, 128))
                asked = job(str(number), model="m", width=size, height=size, num_images=source.choice((1, 1, 2)))
                asked.crashes = source.random() < 0.1
                assert list(fleet.serving.admitting(asked)) == fleet.asked_one_by_one(asked)
                if fleet.begin(asked) is not None:
                    running.append(asked)
            case share if share < 0.65 and running:
                (holder,) = fleet.serving.holders(drawn := source.choice(running))
                holder._jobs.drawn(drawn)
                fleet.serving.touch(holder)
            case share if share < 0.97 and running:
                fleet.serving.release(running.pop(source.randrange(len(running))))
            case _:
                instance = source.choice(fleet.instances)
                if not instance.jobs:
                    is_there = instance.state is WorkerState.READY
                    instance._set_state(WorkerState.DRAINING if is_there else WorkerState.READY)
    assert set(fleet.serving.of("m")) == {instance for instance in fleet.instances if instance.is_serving}


def test_full_devices_are_not_asked(asked_instances: list[ModelInstance]) -> None:
    fleet = Fleet(300)
    jobs = [job(str(number), model="m") for number in range(600)]
    assert all(fleet.begin(each) for each in jobs)
    assert len(asked_instances) <= 2 * len(jobs), "one or two for each job, of three hundred"
    asked_instances.clear()
    waiting = job("waiting", model="m")
    assert fleet.begin(waiting) is None
    assert asked_instances == []
    (freed,) = fleet.serving.holders(jobs[77])
    fleet.serving.release(jobs[77])
    assert fleet.begin(waiting) is freed
    assert asked_instances == [freed]


def test_of_devices_that_have_no_room_for_a_large_job_only_some_are_asked(
    asked_instances: list[ModelInstance],
) -> None:
    fleet = Fleet(300)
    for number in range(300):
        assert fleet.begin(job(str(number), model="m"))
    asked_instances.clear()
    assert fleet.begin(job("large", model="m", num_images=2)) is None
    assert len(asked_instances) == serving_module._LOOKED_AT


def test_only_what_was_touched_is_sorted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, filed = Fleet(300), list[ModelInstance]()
    file = Serving._file

    def counted(serving: Serving, instance: ModelInstance) -> None:
        filed.append(instance)
        file(serving, instance)

    monkeypatch.setattr(Serving, "_file", counted)
    first = job("first", model="m")
    holder = fleet.begin(first)
    assert len(filed) == 300
    filed.clear()
    fleet.begin(job("second", model="m"))
    assert filed == [holder]
    fleet.changes.announce()
    filed.clear()
    assert fleet.serving.of("other") == ()
    assert len(filed) == 300, "a device has changed"
