"""One word for the whole server, from the states of its workers; and one entry per worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safelight.config import Config
from safelight.errors import LoadError
from safelight.model_list import ModelEntry
from safelight.protocol import LoadProgress, Warm
from safelight.server.changes import Changes
from safelight.server.cluster import LocalCluster
from safelight.server.devices import Device
from safelight.server.metrics import Metrics
from safelight.server.model_instance import ModelInstance
from safelight.server.served_model import ServedModel
from safelight.server.status import overall_status, worker_status
from safelight.server.worker import Worker
from safelight.server.worker_state import SERVING, WorkerState
from tests.unit.running_front import job


def _worker(state: WorkerState = WorkerState.STARTING, worker_id: int = 0) -> Worker:
    """With a process in this state, or with none, as the state has it."""
    device, config, changes, metrics = (
        Device("cuda:1", "cuda:0", {}),
        Config(data_dir=Path("x")),
        Changes(),
        Metrics(dict),
    )
    model = ServedModel(ModelEntry(model="safelight/stub", name="m"), config)
    cluster = LocalCluster([device])
    worker = Worker(worker_id, device, config, model, changes, metrics, cluster)
    if state in (WorkerState.FAILED, WorkerState.UNLOADED):
        worker.wanted = None
        worker.error = LoadError("the sentence") if state is WorkerState.FAILED else None
    else:
        instance = ModelInstance(worker_id, device, model, changes, metrics, cluster)
        instance.state = state
        if state in SERVING:
            worker.current, worker.loader.has_been_ready = instance, True
        else:
            worker.loader.coming = instance
    return worker


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ("starting", "loading"),
        ("loading", "loading"),
        ("warming", "warming"),
        ("ready", "ready"),
        ("busy", "ready"),
        ("failed", "failed"),
        ("restarting", "loading"),
        ("ready busy", "ready"),
        ("ready loading", "ready"),
        ("ready warming", "ready"),
        ("ready failed", "degraded"),
        ("busy restarting", "degraded"),
        ("failed failed", "failed"),
        ("failed loading", "loading"),
        ("failed warming", "warming"),
        ("loading warming", "warming"),
        ("failed restarting", "loading"),
        ("unloaded", "ready"),
        ("unloaded ready", "ready"),
        ("unloaded failed", "degraded"),
    ],
)
def test_the_workers_states_make_one_word(states: str, status: str) -> None:
    workers = [_worker(WorkerState(state)) for state in states.split()]
    assert overall_status(workers, is_draining=False) == status
    assert overall_status(workers, is_draining=True) == "draining"


def test_a_worker_that_loads_again_since_its_process_died_is_missed_until_it_is_ready() -> None:
    workers = [_worker(WorkerState.READY), _worker(WorkerState.LOADING, 1)]
    assert overall_status(workers, is_draining=False) == "ready"
    workers[1].loader.is_recovering = True
    assert overall_status(workers, is_draining=False) == "degraded"


def test_a_loading_worker_says_how_far_it_is() -> None:
    worker = _worker(WorkerState.LOADING)
    worker.load.advance(LoadProgress("weights", "transformer", 5, 7, 40, 80))
    entry = worker_status(worker)
    seconds, eta_s = entry.pop("seconds"), entry.pop("eta_s")
    assert 0 <= seconds < 5
    assert 0 <= eta_s < 5
    assert entry == {
        "id": 0,
        "device": "cuda:1",
        "node": None,
        "state": "loading",
        "model": "m",
        "coming": None,
        "switch": None,
        "phase": "weights",
        "component": "transformer",
        "components_done": 5,
        "components_total": 7,
        "bytes_done": 40,
        "bytes_total": 80,
        "components": [],
        "phase_seconds": {},
        "past_loads": [],
        "error": None,
        "restarts": 0,
        "job": None,
        "jobs": [],
        "remaining_s": None,
        "batch_tokens": 0,
        "memory": None,
        "fit": None,
        "warm": {},
    }


@pytest.mark.anyio
async def test_each_component_says_how_many_of_its_bytes_are_there() -> None:
    worker = _worker(WorkerState.LOADING)
    assert worker.model is not None
    await worker.model.refresh()

    def filled() -> list[float]:
        parts = worker_status(worker)["components"]
        assert [part["name"] for part in parts][-2:] == ["transformer", "vae"]
        return [part["bytes_done"] / part["bytes_total"] for part in parts]

    assert filled() == [0.0] * 7
    worker.load.advance(LoadProgress("weights", "vae", 5, 7, 0, 0, {"tokenizer": 1_000_000, "vae": 250_000}))
    assert filled() == [1.0, 0, 0, 0, 0, 0, 0.25]
    worker.load.advance(LoadProgress("warmup", None, 7, 7, 0, 0))
    assert filled() == [1.0] * 7


def test_a_ready_worker_has_no_phase_and_no_eta() -> None:
    worker = _worker(WorkerState.READY)
    worker.load.advance(LoadProgress("warmup", None, 7, 7, 80, 80))
    worker.load.finish({"import": 1.23456})
    entry = worker_status(worker)
    assert (entry["phase"], entry["eta_s"], entry["phase_seconds"]) == (None, None, {"import": 1.235})


def test_a_failed_worker_gives_its_sentence_and_promises_nothing() -> None:
    worker = _worker(WorkerState.FAILED)
    worker.load.advance(LoadProgress("weights", "transformer", 5, 7, 40, 80))
    worker.error = LoadError("vae/config.json is missing")
    assert (worker_status(worker)["error"], worker_status(worker)["eta_s"]) == ("vae/config.json is missing", None)


def test_a_busy_worker_names_its_jobs_and_their_steps_the_oldest_first() -> None:
    worker = _worker(WorkerState.READY)
    jobs = [job(num_images=2), job("job_2")]
    assert worker.current is not None
    for running in jobs:
        worker.current.reserve(running)
    jobs[0].step = 3
    entry = worker_status(worker)
    first = {"id": "job_1", "request_id": "req_1", "step": 3, "total_steps": 8, "workers": []}
    assert entry["job"] == first
    assert entry["jobs"] == [first, {"id": "job_2", "request_id": "req_1", "step": 0, "total_steps": 4, "workers": []}]


def test_a_worker_says_how_much_it_takes_at_once_and_what_it_has_done_before() -> None:
    worker = _worker(WorkerState.READY)
    worker.load.finish({}, 9216)
    for width, rows in ((1024, 2), (512, 4), (512, 1), (512, 4)):
        worker.load.warmed(Warm(width, 512, rows))
    entry = worker_status(worker)
    assert entry["batch_tokens"] == 9216
    assert list(entry["warm"].items()) == [("512x512", [1, 4]), ("1024x512", [2])]


def test_an_entry_is_json() -> None:
    assert json.loads(json.dumps(worker_status(_worker()))) == worker_status(_worker())
