"""kill -9, hangs and nonsense of the worker, with jobs waiting: R01-R05, R10-R14, R17-R20 of the reliability map."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import pytest

from tests.chaos.chaos_server import ChaosServer, LivenessProbe
from tests.chaos.conftest import Start

JOBS = 20


@pytest.mark.timed
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("engine.begin@3", id="before the first step", marks=pytest.mark.slow),
        pytest.param("engine.step@9", id="at the first step", marks=pytest.mark.slow),
        pytest.param("engine.step@10", id="at a middle step"),
        pytest.param("engine.step@12", id="at the last step", marks=pytest.mark.slow),
        pytest.param("engine.decode@3", id="while decoding"),
        pytest.param("engine.encode@3", id="while encoding", marks=pytest.mark.slow),
        pytest.param("engine.sent@3", id="between done and commit"),
    ],
)
def test_a_worker_killed_in_a_job_costs_nothing_but_time(point: str, start: Start) -> None:
    """R01: no job lost, none done twice, the same pictures, and HTTP never down."""
    server = start("--faults", f"{point}=kill")
    with LivenessProbe(server.url) as probe:
        names = [server.submit(seed=number)["id"] for number in range(JOBS)]
        ended = [server.wait_for(name) for name in names]
    probe.assert_calm()
    assert [shown["status"] for shown in ended] == ["succeeded"] * JOBS
    attempts = [shown["attempt"] for shown in ended]
    assert attempts.pop(2) == (1 if point.startswith("engine.sent") else 2)
    has_next = point.startswith(("engine.encode", "engine.sent"))  # which is at work by then
    assert sum(attempts) - len(attempts) <= has_next
    assert server.status()["workers"][0]["restarts"] == 1
    undisturbed = server.submit(seed=2)["id"]
    server.wait_for(undisturbed)
    assert server.picture(names[2]) == server.picture(undisturbed)
    assert server.metric("requests_total", status="succeeded") == JOBS + 1
    assert server.is_balanced()


@pytest.mark.timed
def test_readiness_goes_and_comes_back(start: Start) -> None:
    """R01: not ready within half a second of a death, ready again within two."""
    server = start(STUB_LOAD_S="0.6")
    os.kill(server.worker_pid(), signal.SIGKILL)
    killed_s = time.monotonic()
    server.poll(lambda: server.get("/readyz").status_code == 503)
    assert time.monotonic() - killed_s < 0.5
    server.wait_until_ready()
    assert time.monotonic() - killed_s < 2 + 0.6


@pytest.mark.parametrize("phase", ["idle", "loading", "warming"])
def test_a_worker_killed_without_a_job_is_replaced(phase: str, start: Start) -> None:
    """R02, R03: the replacement really works."""
    slow = {"idle": ("0.05", "0.01"), "loading": ("0.7", "0.01"), "warming": ("0.05", "0.3")}[phase]
    server = start(is_ready=phase == "idle", STUB_LOAD_S=slow[0], step_s=float(slow[1]))
    if phase != "idle":
        server.wait_until(lambda status: status["workers"][0]["state"] == phase)
    os.kill(server.worker_pid(), signal.SIGKILL)
    name = server.submit()["id"]
    assert server.wait_for(name)["attempt"] == 1
    assert server.status()["workers"][0]["restarts"] == 1


def _has(worker: dict[str, Any], restarts: int, count: int) -> bool:
    return worker["restarts"] == restarts and len(worker["jobs"]) >= count


def test_mates_of_a_job_that_kills_its_worker_are_done_all_the_same(start: Start) -> None:
    """Four share the worker when it dies; each then has one for itself, and the poison takes nobody along again."""
    server = start(STUB_ROWS="4", step_s=0.05)
    names = [server.submit(seed=number, num_inference_steps=20)["id"] for number in range(8)]

    def running(restarts: int, count: int) -> list[str]:
        """The jobs of that process, once there are so many."""
        worker = server.wait_until(lambda status: _has(status["workers"][0], restarts, count))["workers"][0]
        return [job["id"] for job in worker["jobs"]]

    mates = running(restarts=0, count=4)
    os.kill(server.worker_pid(), signal.SIGKILL)
    (alone,) = running(restarts=1, count=1)
    os.kill(server.worker_pid(), signal.SIGKILL)
    ended = [server.wait_for(name) for name in names]
    assert [shown["status"] for shown in ended] == ["succeeded"] * 8
    expected = {name: 1 for name in names} | {name: 2 for name in mates} | {alone: 3}
    assert alone in mates and {shown["id"]: shown["attempt"] for shown in ended} == expected
    assert server.metric("requests_total", status="succeeded") == 8
    assert server.is_balanced()


@pytest.mark.slow
def test_a_poison_job_fails_and_the_others_are_done(start: Start) -> None:
    """R04: three workers, then the job fails; those behind it wait no longer than that."""
    server = start("--faults", "engine.begin@2=kill;engine.begin@3=kill;engine.begin@4=kill")
    names = [server.submit(seed=number)["id"] for number in range(4)]
    ended = [server.wait_for(name) for name in names]
    assert [shown["status"] for shown in ended] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert (ended[1]["error_code"], ended[1]["attempt"]) == ("worker_crashed", 3)


@pytest.mark.timed
def test_a_crash_loop_opens_the_circuit_and_keeps_the_jobs(start: Start) -> None:
    """R05: the reason is shown, one line a death, no busy loop; the job is done once it works again."""
    server = start("--faults", "engine.load@2+=kill")
    os.kill(server.worker_pid(), signal.SIGKILL)
    name = server.submit()["id"]
    server.wait_until(lambda status: status["workers"][0]["restarts"] >= 3)
    busy_s = sum(psutil.Process(server.process.pid).cpu_times()[:2])
    ready = server.get("/readyz")
    assert ready.status_code == 503
    assert "in a row; the next one starts in" in ready.json()["workers"][0]["error"]
    assert server.get("/livez").status_code == 200
    time.sleep(1)
    assert sum(psutil.Process(server.process.pid).cpu_times()[:2]) - busy_s < 0.2
    server.poll(lambda: _deaths_logged(server) == server.status()["workers"][0]["restarts"], 5)
    assert server.prediction(name)["status"] == "starting"
    server.end()
    again = start()
    assert again.wait_for(name)["status"] == "succeeded"


def _deaths_logged(server: ChaosServer) -> int:
    return len([line for line in server.lines if "in a row" in line])


@pytest.mark.timed
def test_a_stopped_worker_is_found_hung_killed_and_its_late_result_never_comes(start: Start) -> None:
    """R10, R14: SIGSTOP in the middle of a step."""
    server = start("--hang-timeout-s", "1", step_s=0.05)
    name = server.submit(steps=20)["id"]
    server.wait_for_step(name, 3)
    os.kill(server.worker_pid(), signal.SIGSTOP)
    stopped_s = time.monotonic()
    server.wait_until(lambda status: status["workers"][0]["restarts"] == 1)
    assert time.monotonic() - stopped_s < 1 + 1 + 0.5
    shown = server.wait_for(name)
    assert (shown["status"], shown["attempt"]) == ("succeeded", 2)
    assert server.metric("worker_restarts_total", reason="hung") == 1
    assert server.metric("requests_total") == 1


def test_a_hanging_step_leaves_its_stack_in_the_log(start: Start) -> None:
    """R10: where it hung is what an operator wants to know."""
    server = start("--hang-timeout-s", "0.5", "--faults", "engine.step@2=hang")
    name = server.submit()["id"]
    assert server.wait_for(name)["attempt"] == 2
    server.logged("made no step of")
    server.logged("_generate_image_sync")


@pytest.mark.slow
def test_a_slow_worker_is_not_killed(start: Start) -> None:
    """R11: steps that become five times slower."""
    server = start("--hang-timeout-s", "0.5", "--faults", "engine.step@30+=sleep:0.05", step_s=0.01)
    names = [server.submit()["id"] for _ in range(15)]
    assert {server.wait_for(name)["attempt"] for name in names} == {1}
    assert server.status()["workers"][0]["restarts"] == 0


@pytest.mark.timed
@pytest.mark.parametrize("point", ["engine.load", "engine.warmup"])
def test_a_load_that_hangs_has_a_deadline(point: str, start: Start) -> None:
    """R12"""
    server = start("--load-timeout-s", "1", "--faults", f"{point}@1=hang", is_ready=False)
    with LivenessProbe(server.url) as probe:
        server.wait_until_ready()
    probe.assert_calm()
    assert server.status()["workers"][0]["restarts"] == 1
    server.logged("did not finish loading within 1 s")


@pytest.mark.parametrize("action", ["cuda", "nan", "flat"])
def test_a_broken_device_or_picture_is_never_a_result(action: str, start: Start) -> None:
    """R19, R20: the worker ends by itself, the job runs again elsewhere, the others do not notice."""
    point = "engine.step@6" if action == "cuda" else "engine.decode@2"
    server = start("--faults", f"{point}={action}")
    names = [server.submit(seed=7)["id"] for _ in range(4)]
    ended = [server.wait_for(name) for name in names]
    assert [(shown["status"], shown["attempt"]) for shown in ended] == [
        ("succeeded", 1),
        ("succeeded", 2),
        ("succeeded", 1),
        ("succeeded", 1),
    ]
    assert len({server.picture(name) for name in names}) == 1
    assert server.metric("worker_restarts_total", reason="unfit") == 1
    server.lines[:] = [line for line in server.lines if "Traceback" not in line]  # the worker says where it failed


@pytest.mark.slow
def test_a_model_that_only_makes_nonsense_fails_the_job_in_the_end(start: Start) -> None:
    """R20: three workers, then the error says what was wrong with the picture."""
    server = start("--faults", "engine.decode=nan")
    shown = server.wait_for(server.submit()["id"])
    assert (shown["status"], shown["error_code"], shown["output"]) == ("failed", "bad_output", None)
    server.lines[:] = [line for line in server.lines if "Traceback" not in line]


def test_out_of_memory_fails_that_job_alone(start: Start) -> None:
    """R18"""
    server = start("--faults", "engine.step@2=oom")
    names = [server.submit()["id"] for _ in range(3)]
    ended = [server.wait_for(name) for name in names]
    assert [shown["status"] for shown in ended] == ["failed", "succeeded", "succeeded"]
    assert ended[0]["error_code"] == "out_of_memory"
    assert server.status()["workers"][0]["restarts"] == 0


@pytest.mark.slow
def test_the_out_of_memory_killer_is_a_death_like_any_other(start: Start) -> None:
    """R17, as far as it goes without limits of the kernel: SIGKILL at an allocation of a running job."""
    server = start(step_s=0.05)
    name = server.submit(steps=20)["id"]
    server.wait_for_step(name, 2)
    psutil.Process(server.worker_pid()).kill()
    assert server.wait_for(name)["status"] == "succeeded"
