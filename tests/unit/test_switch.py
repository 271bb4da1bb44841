"""One device and two models: who is served when, what a switch does with jobs, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight.errors import CheckpointInvalid, LoadError
from safelight.jobs import Job, JobStatus
from safelight.model_list import ModelEntry
from safelight.protocol import Memory
from safelight.server import loader as loader_module
from safelight.server.front import Front
from safelight.server.served_model import ServedModel
from safelight.server.switch import plan_switch
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState
from tests.unit.fake_checkpoint import write_checkpoint
from tests.unit.running_front import TIMEOUT_S, ended, pictures, running_front, submit, until, until_ready

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01, 0.01, 0.01))


class Two:
    """A front with the models ``a``, the default, and ``b``; files beside the marker say what b's process does."""

    def __init__(self, front: Front, folder: Path) -> None:
        self.front = front
        self.folder = folder
        self.a, self.b = list(front.models)[:2]

    @property
    def worker(self) -> Worker:
        return self.front.workers[0]

    @property
    def switch(self) -> dict[str, Any]:
        assert self.worker.switch is not None
        return self.worker.switch.as_json()

    def tell(self, *files: str) -> None:
        for file in files:
            (self.folder / file).touch()

    def untell(self, file: str) -> None:
        (self.folder / file).unlink()

    async def submit(self, model: str, *names: str, **members: Any) -> list[Job]:
        return [await submit(self.front, model=model, prompt=name, **members) for name in names]

    async def results(self, *jobs: Job) -> list[str]:
        return [pictures(self.front, await ended(self.front, job))[0].decode() for job in jobs]

    async def until(self, condition: Callable[[], object]) -> None:
        await until(self.front.changes, condition)

    def status(self, model: str) -> dict[str, Any]:
        return next(entry for entry in self.front.status()["models"] if entry["id"] == model)

    @property
    def switches(self) -> dict[str, float]:
        value = self.front.metrics.registry.get_sample_value
        name = "safelight_model_switches_total"
        return {result: value(name, {"result": result}) or 0.0 for result in ("done", "failed")}


@contextlib.asynccontextmanager
async def two_models(
    folder: Path, *, overlap: str = "always", wait_s: float = 60.0, b: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Two]:
    for name in ("a", "b"):
        if not (folder / name).exists():
            write_checkpoint(folder / name)
    entries = (
        ModelEntry(model=str(folder / "a"), name="a"),
        ModelEntry(model=str(folder / "b"), name="b", **(b or {})),
    )
    defaults = {"models": entries, "model": entries[0].model, "switch_overlap": overlap, "model_wait_s": wait_s}
    async with running_front(folder, "names_its_model", **defaults | settings) as front:
        await until_ready(front)
        yield Two(front, folder)


# --- by request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["always", "never"])
async def test_each_job_is_drawn_by_the_model_that_it_names(overlap: str, tmp_path: Path) -> None:
    async with two_models(tmp_path, overlap=overlap) as two:
        jobs = [*await two.submit("a", "1"), *await two.submit("b", "2"), *await two.submit("a", "3")]
        assert await two.results(*jobs) == ["a: 1", "b: 2", "a: 3"]
        assert two.switches["failed"] == 0
        (last,) = await two.submit("b", "4")
        assert await two.results(last) == ["b: 4"]
        assert two.status("b")["state"] == "ready"
        assert (two.status("b")["loaded_on"], two.status("a")["state"]) == (["cpu"], "unloaded")


async def test_the_old_model_serves_until_the_new_one_is_ready(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.load")
        (waiting,) = await two.submit("b", "for b")
        await two.until(lambda: two.worker.coming and two.worker.coming.state is WorkerState.LOADING)
        assert await two.results(*await two.submit("a", "1", "2")) == ["a: 1", "a: 2"]
        entry = two.front.status()["workers"][0]
        assert (entry["state"], entry["model"]) == ("ready", "a")
        assert (entry["coming"]["model"], entry["coming"]["phase"]) == ("b", "import")
        assert {name: two.switch[name] for name in ("from", "to", "state", "keeps_serving", "reason")} == {
            "from": "a",
            "to": "b",
            "state": "running",
            "keeps_serving": True,
            "reason": "switch_overlap is always",
        }
        assert two.front.is_ready and not two.front.is_model_ready(two.b)
        two.untell("b.load")
        assert await two.results(waiting) == ["b: for b"]
        await two.until(lambda: two.switch["state"] == "done")
        assert two.front.status()["workers"][0]["coming"] is None


async def test_a_job_of_the_old_model_ends_beside_the_new_one(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        assert await two.results(*await two.submit("b", "1")) == ["b: 1"]
        assert (held.status, two.worker.model) == (JobStatus.RUNNING, two.b)
        assert held in two.worker.jobs
        two.tell("held.draw")
        assert await two.results(held) == ["a: held"]
        assert held.attempt == 1
        await two.until(lambda: len(two.worker.processes) == 1)


async def test_where_memory_is_short_the_old_model_ends_first_with_its_jobs(tmp_path: Path) -> None:
    async with two_models(tmp_path, overlap="never") as two:
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        (waiting,) = await two.submit("b", "1")
        await two.until(lambda: two.worker.state is WorkerState.DRAINING)
        assert (two.switch["keeps_serving"], two.switch["reason"]) == (False, "switch_overlap is never")
        assert len(psutil.Process().children()) == 1
        assert two.front.is_ready, "jobs are welcome between two models"
        two.tell("b.load", "held.draw")
        assert await two.results(held) == ["a: held"]
        await two.until(lambda: two.worker.coming)
        assert len(two.worker.processes) == 1
        assert (two.front.is_ready, two.front.state, two.worker.model) == (True, "ready", two.b)
        two.untell("b.load")
        assert await two.results(waiting) == ["b: 1"]
        assert (held.attempt, waiting.attempt) == (1, 1)


async def test_a_model_that_does_not_fit_beside_the_old_one_after_all_comes_when_that_has_ended(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.small")
        assert await two.results(*await two.submit("b", "1")) == ["b: 1"]
        await two.until(lambda: two.switch["state"] == "done")
        assert not two.switch["keeps_serving"]
        assert two.switch["reason"] == "both do not fit: 8 GB are needed, 4 GB are free"
        assert two.status("b")["error"] is None


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["always", "never"])
async def test_a_switch_that_fails_leaves_the_old_model_serving_and_says_why(overlap: str, tmp_path: Path) -> None:
    async with two_models(tmp_path, overlap=overlap) as two:
        two.tell("b.fail")
        (kept,) = await two.submit("b", "1")
        end = two.front.dispatcher.end(kept)
        await asyncio.wait({end}, timeout=TIMEOUT_S)
        assert isinstance(end.exception(), CheckpointInvalid)
        assert kept.status is JobStatus.QUEUED
        await two.until(lambda: two.switch["state"] == "failed")
        assert two.switch["error"] == "b is broken"
        assert (two.status("b")["state"], two.status("b")["error"]) == ("failed", "b is broken")
        with pytest.raises(CheckpointInvalid, match="b is broken"):
            await two.submit("b", "2")
        assert await two.results(*await two.submit("a", "3")) == ["a: 3"]
        assert (two.front.state, two.switches) == ("ready", {"done": 0.0, "failed": 1.0})
        two.untell("b.fail")
        two.front.placement.load(two.b)
        assert await two.results(kept) == ["b: 1"]
        assert two.status("b")["error"] is None


async def test_a_model_with_a_broken_file_starts_no_process(tmp_path: Path) -> None:
    async with two_models(tmp_path, overlap="never") as two:
        (process,) = psutil.Process().children()
        (tmp_path / "b" / "vae" / "config.json").unlink()
        await two.submit("b", "1")
        await two.until(lambda: two.status("b")["state"] == "failed")
        assert "config.json" in two.status("b")["error"]
        assert psutil.Process().children() == [process], "the old one serves on, it was not even ended"
        assert await two.results(*await two.submit("a", "2")) == ["a: 2"]


@pytest.mark.parametrize("overlap", ["always", "never"])
async def test_a_new_process_that_is_killed_while_it_loads_is_replaced(overlap: str, tmp_path: Path) -> None:
    async with two_models(tmp_path, overlap=overlap) as two:
        two.tell("b.load")
        jobs = [*await two.submit("b", "1", "2"), *await two.submit("a", "3")]
        await two.until(lambda: two.worker.coming is not None and two.worker.coming._process is not None)
        assert two.worker.coming is not None and two.worker.coming._process is not None
        two.worker.coming._process.kill()
        await two.until(lambda: two.worker.loader.restarts == 1)
        two.untell("b.load")
        assert await two.results(*jobs) == ["b: 1", "b: 2", "a: 3"]
        assert [job.attempt for job in jobs] == [1, 1, 1]


async def test_a_model_whose_processes_keep_dying_fails_and_the_old_one_stays(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.die")
        await two.submit("b", "1")
        await two.until(lambda: two.status("b")["state"] == "failed")
        assert two.status("b")["error"] == "the worker died (exit code 3) while it loaded b, 3 times in a row"
        assert await two.results(*await two.submit("a", "2")) == ["a: 2"]
        entry = two.front.status()["workers"][0]
        assert (entry["state"], entry["error"], entry["restarts"]) == ("ready", None, 3)


async def test_when_the_old_process_dies_during_a_switch_nothing_is_lost(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.load")
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        (other,) = await two.submit("b", "1")
        await two.until(lambda: two.worker.coming)
        assert two.worker.current is not None and two.worker.current._process is not None
        two.worker.current._process.kill()
        await two.until(lambda: held.status is JobStatus.QUEUED)
        two.tell("held.draw")
        two.untell("b.load")
        assert await two.results(other, held) == ["b: 1", "a: held"]
        assert held.attempt == 2


async def test_stop_in_the_middle_of_a_switch_leaves_no_process(tmp_path: Path) -> None:
    for overlap in ("always", "never"):
        (tmp_path / overlap).mkdir()
        async with two_models(tmp_path / overlap, overlap=overlap) as two:
            two.tell("b.load")
            (held, _) = [*await two.submit("a", "held"), *await two.submit("b", "1")]
            await two.until(lambda: two.worker.switch)
            await asyncio.wait_for(two.front.stop(), TIMEOUT_S)
            assert held.status is JobStatus.QUEUED
        assert not psutil.Process().children()


# --- order --------------------------------------------------------------------------------------------------------


async def test_jobs_that_alternate_do_not_make_the_models_alternate(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        jobs = [job for number in range(20) for job in await two.submit("ab"[number % 2], str(number))]
        assert await two.results(*jobs) == [f"{'ab'[number % 2]}: {number}" for number in range(20)]
        assert sum(two.switches.values()) <= 2


async def test_jobs_of_another_model_wait_for_a_time_only(tmp_path: Path) -> None:
    async with two_models(tmp_path, wait_s=0.3) as two:
        (waiting,) = await two.submit("b", "b")
        more = [job for number in range(30) for job in await two.submit("a", str(number))]
        assert await two.results(waiting) == ["b: b"]
        drawn = sum(job.status is JobStatus.SUCCEEDED for job in more)
        assert await two.results(*more) == [f"a: {number}" for number in range(30)]
        assert two.switches["done"] <= 4, drawn


async def test_without_any_wait_both_models_still_get_on(tmp_path: Path) -> None:
    async with two_models(tmp_path, wait_s=0.0, overlap="never") as two:
        jobs = [job for number in range(6) for job in await two.submit("ab"[number % 2], str(number))]
        assert await two.results(*jobs) == [f"{'ab'[number % 2]}: {number}" for number in range(6)]


async def test_the_position_of_a_job_counts_those_of_the_model_that_goes_first(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        own = await two.submit("a", "1", "2")
        others = await two.submit("b", "3", "4")
        assert [two.front.forecast.position(job) for job in (held, *own, *others)] == [None, 0, 1, 2, 3]
        two.tell("held.draw")
        await two.results(*own, *others)


async def test_the_eta_counts_the_load_that_comes_before_it(tmp_path: Path) -> None:
    async with two_models(tmp_path, wait_s=10.0) as two:
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        work, eta_s = held.params.work, two.front.forecast.eta_s
        two.front.dispatcher.paces.of("a").measured(work, 2.0)
        two.front.dispatcher.paces.of("b").measured(work, 3.0)
        await two.submit("a", "1", "2")
        (other,) = await two.submit("b", "3")
        assert eta_s(other) is None, "nobody knows how long b loads"
        two.worker.loader.history._known["b on cpu"] = 100.0
        # what is left of the one that runs (3 of 4 steps), the two that wait, the load, its own
        assert eta_s(other) == pytest.approx(1.5 + 4.0 + 100.0 + 3.0, abs=0.5)
        await two.submit("a", *(str(number) for number in range(20)))
        assert eta_s(other) == pytest.approx(1.5 + 10.0 + 100.0 + 3.0, abs=1.0), "they go first for ten seconds only"
        two.tell("held.draw")


# --- unload, load, pin --------------------------------------------------------------------------------------------


async def test_a_model_without_jobs_is_unloaded_after_a_time_and_comes_back_for_the_next(tmp_path: Path) -> None:
    async with two_models(tmp_path, idle_unload_s=0.2) as two:
        await two.until(lambda: two.worker.state is WorkerState.UNLOADED)
        assert not psutil.Process().children()
        assert (two.front.state, two.front.is_ready, two.status("a")["state"]) == ("ready", True, "unloaded")
        assert await two.results(*await two.submit("a", "1")) == ["a: 1"]
        assert await two.results(*await two.submit("b", "2")) == ["b: 2"]
        await two.until(lambda: two.worker.state is WorkerState.UNLOADED)


async def test_a_model_may_have_an_idle_time_of_its_own(tmp_path: Path) -> None:
    async with two_models(tmp_path, b={"own": {"idle_unload_s": 0.05}}) as two:
        assert await two.results(*await two.submit("b", "1")) == ["b: 1"]
        await two.until(lambda: two.worker.state is WorkerState.UNLOADED)
        assert await two.results(*await two.submit("a", "2")) == ["a: 2"]
        await asyncio.sleep(0.2)
        assert two.status("a")["state"] == "ready"


async def test_unloading_lets_running_jobs_end_and_waiting_ones_bring_it_back(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        (process,) = psutil.Process().children()
        jobs = await two.submit("a", "held", "1", "2")
        await two.until(lambda: jobs[0].step == 1)
        two.front.placement.unload(two.a)
        await two.until(lambda: two.worker.state is WorkerState.DRAINING)
        two.tell("held.draw")
        assert await two.results(*jobs) == ["a: held", "a: 1", "a: 2"]
        assert [job.attempt for job in jobs] == [1, 1, 1]
        assert process not in psutil.Process().children()


async def test_unloading_the_model_that_comes_calls_the_switch_off(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.load")
        two.front.placement.load(two.b)
        await two.until(lambda: two.worker.coming)
        two.front.placement.unload(two.b)
        await two.until(lambda: two.switch["state"] == "failed")
        assert two.switch["error"] == "it was called off"
        assert (two.status("a")["state"], two.status("b")["state"]) == ("ready", "unloaded")
        assert len(psutil.Process().children()) == 1


async def test_loading_a_model_that_is_loaded_does_nothing(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        before = psutil.Process().children()
        two.front.placement.load(two.a)
        await asyncio.sleep(0.05)
        assert (psutil.Process().children(), two.worker.switch) == (before, None)


async def test_a_pinned_model_stays_whoever_waits_until_it_is_unpinned(tmp_path: Path) -> None:
    async with two_models(tmp_path, idle_unload_s=0.05) as two:
        two.front.placement.pin(two.a, is_pinned=True)
        with pytest.raises(LoadError, match=r"b cannot be loaded: every device keeps a pinned model \(a\)"):
            await two.submit("b", "1")
        for order in (two.front.placement.load, two.front.placement.unload):
            with pytest.raises(Exception, match="unpin"):
                order(two.b if order == two.front.placement.load else two.a)
        await asyncio.sleep(0.2)
        assert two.status("a") == two.status("a") | {"state": "ready", "pinned": True}
        two.front.placement.pin(two.a, is_pinned=False)
        assert await two.results(*await two.submit("b", "1")) == ["b: 1"]


async def test_a_model_that_is_pinned_in_the_settings_is_the_one_that_is_loaded_first(tmp_path: Path) -> None:
    async with two_models(tmp_path, b={"is_pinned": True}) as two:
        assert (two.worker.model, two.status("b")["pinned"]) == (two.b, True)
        assert two.front.model is two.a


# --- several devices ----------------------------------------------------------------------------------------------


async def test_of_two_devices_one_takes_the_model_that_is_waited_for_and_each_keeps_its_own(tmp_path: Path) -> None:
    async with two_models(tmp_path, device="cuda:0,1") as two:
        await two.until(lambda: all(worker.is_idle for worker in two.front.workers))
        assert two.status("a")["loaded_on"] == ["cuda:0", "cuda:1"]
        jobs = [job for number in range(10) for job in await two.submit("ab"[number % 2], str(number))]
        assert await two.results(*jobs) == [f"{'ab'[number % 2]}: {number}" for number in range(10)]
        await two.until(lambda: all(worker.is_settled for worker in two.front.workers))
        loaded = two.status("a")["loaded_on"] + two.status("b")["loaded_on"]
        assert sorted(loaded) == ["cuda:0", "cuda:1"]
        assert two.switches == {"done": 1.0, "failed": 0.0}


async def test_an_idle_device_helps_only_where_that_is_faster_than_its_load(tmp_path: Path) -> None:
    async with two_models(tmp_path, device="cuda:0,1") as two:
        await two.results(*await two.submit("b", "1"))
        await two.until(lambda: all(worker.is_settled for worker in two.front.workers))
        pace = two.front.dispatcher.paces.of("b")
        for worker in two.front.workers:
            worker.loader.history._known[f"b on {worker.device.name}"] = 1000.0
        held = await two.submit("b", "held 1", "2", "3")
        await two.until(lambda: held[0].step == 1)
        assert two.front.placement.settle() == float("inf")
        assert len(two.status("b")["loaded_on"]) == 1
        for _ in range(50):
            pace.measured(held[0].params.work, 5000.0)
        two.front.placement.settle()
        await two.until(lambda: len(two.status("b")["loaded_on"]) == 2)
        two.tell("held 1.draw")
        assert await two.results(*held) == ["b: held 1", "b: 2", "b: 3"]


async def test_a_device_that_cannot_have_a_model_leaves_it_to_another(tmp_path: Path) -> None:
    async with two_models(tmp_path, device="cuda:0,1") as two:
        two.tell("b.fail")
        (job,) = await two.submit("b", "1")
        await two.until(lambda: any(worker.loader.errors for worker in two.front.workers))
        two.untell("b.fail")
        assert await two.results(job) == ["b: 1"]


# --- restart ------------------------------------------------------------------------------------------------------


async def test_jobs_remember_their_model_over_a_restart_and_fail_if_it_is_gone(tmp_path: Path) -> None:
    async with two_models(tmp_path) as two:
        two.tell("b.load")
        names = [job.id for job in [*await two.submit("a", "held"), *await two.submit("b", "1")]]
    (tmp_path / "b.load").unlink()
    (tmp_path / "held.draw").touch()
    async with two_models(tmp_path) as two:
        jobs = [await two.front.ledger.find(name, "") for name in names]
        assert await two.results(*[job for job in jobs if job]) == ["a: held", "b: 1"]
        two.tell("b.load")
        (gone,) = await two.submit("b", "2")
    async with running_front(tmp_path, "names_its_model", model=str(tmp_path / "a")) as front:
        job = await front.ledger.find(gone.id, "")
        assert job is not None
        failed = await ended(front, job)
        assert failed.status is JobStatus.FAILED
        assert "the model 'b' is not served here any more" in str(failed.outcome)


# --- whether both fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used_gb", "setting", "fits"),
    [(40, "auto", True), (50, "auto", False), (79, "always", True), (0, "never", False), (None, "auto", False)],
)
async def test_whether_both_fit_is_told_from_what_is_free_and_what_the_new_one_needs(
    used_gb: int | None, setting: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_models(tmp_path, overlap=setting) as two:
        monkeypatch.setattr(ServedModel, "loaded_bytes", lambda self, device: 24_000_000_000)
        memory = None if used_gb is None else Memory(used_gb * 10**9, 80 * 10**9)
        keeps_serving, reason = plan_switch(two.a, two.b, "cuda:0", memory)
        assert keeps_serving is fits
        if setting != "auto":
            assert reason == f"switch_overlap is {setting}"
        elif used_gb is None:
            assert reason == "how much memory of cuda:0 is free is not known yet"
        else:
            assert reason == f"b needs about 36.0 GB beside a, {80 - used_gb}.0 GB of cuda:0 are free"


async def test_on_a_cpu_it_is_the_hosts_memory_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_models(tmp_path, overlap="auto") as two:
        for free_gb, fits in ((2, True), (0.5, False)):
            free = type("Free", (), {"available": int(free_gb * 10**9)})
            monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
            keeps_serving, reason = plan_switch(two.a, two.b, "cpu", None)
            assert (keeps_serving, reason.endswith(f"{free_gb:.1f} GB of cpu are free")) == (fits, True)
