"""What ``bench_front`` measures: submits, jobs as history grows, numbers of workers, followers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.front_load import PATH
from benchmarks.latency import percentile
from benchmarks.live_server import LiveServer
from benchmarks.measured_front import Cost, Fleet, MeasuredFront, measured_front
from benchmarks.processes import ROOT, ProcessEnded, running

Figures = dict[str, Any]

STATUS_STREAM = "/v1/status/stream"
JOB_STREAM = "job"

_FOREVER_S = 3600.0
_SHORT_STEP_S = 0.02
_MOST_STEPS = 200
_MANY_CLIENTS = 64
_PERCENTS = (50, 99)
_POLL_S = 0.25
_EXIT_S = 60.0
_FSYNCS = 40


def submits(clients: int, seconds: float) -> Figures:
    """Jobs that are accepted, that is on disk, in a second; none ends meanwhile, so the queue grows."""
    with _folder() as folder, measured_front(Fleet(step_s=_FOREVER_S), Path(folder)) as front:
        load(front, clients=clients, steps=4, count=20 * clients)  # first uses
        figures = load(front, clients=clients, steps=4, seconds=seconds)
        return figures | {"clients": clients, "waiting_at_end": front.server.status()["queue"]["waiting"]}


def waiting(depth: int, count: int) -> Figures:
    """The same, one client, when so many jobs wait already."""
    with _folder() as folder, measured_front(Fleet(step_s=_FOREVER_S), Path(folder)) as front:
        load(front, clients=8, steps=4, count=max(depth, 20))
        return load(front, clients=1, steps=4, count=count) | {"clients": 1, "waiting_before": depth}


def history(milestones: Sequence[int], window: int, steps: Sequence[int], workers: int, clients: int) -> list[Figures]:
    """Cost of a job after so many others were made, by its number of steps. They come one by one, as from devices."""
    found = []
    fleet = Fleet(workers=workers, step_s=_SHORT_STEP_S, picture_bytes=1000)  # all pictures are kept
    with _folder() as folder, measured_front(fleet, Path(folder)) as front:
        made = load(front, clients=clients, steps=1, count=window, waits=True)["answers"]
        for milestone in milestones:
            if milestone > made:
                made += load(front, clients=clients, steps=1, count=milestone - made, waits=True)["answers"]
            for count in steps:
                figures = load(front, clients=clients, steps=count, count=window, waits=True)
                made += figures["answers"]
                database_mb = round((Path(folder) / "data" / "jobs.sqlite3").stat().st_size / 1e6, 1)
                found.append(figures | {"jobs_made": milestone, "steps": count, "database_mb": database_mb})
    return found


def workers(fleet: Fleet, idle_s: float, count: int, steps: int) -> Figures:
    """A front with so many workers: what it holds and does when idle, and what a job costs."""
    clients = min(2 * fleet.workers, _MANY_CLIENTS)
    with _folder() as folder, measured_front(fleet, Path(folder)) as front:
        load(front, clients=max(clients, fleet.workers), steps=1, count=2 * fleet.workers, waits=True)  # first uses
        free_mb = psutil.virtual_memory().available / 1e6
        before = front.cost()
        time.sleep(idle_s)
        idle = front.cost()
        figures: Figures = {
            "workers": fleet.workers,
            "kind": fleet.kind,
            "ready_s": front.ready_s,
            "idle_cpu_share": round(idle.share_since(before), 4),
            "rss_mb": idle.rss_mb,
            "threads": front.process.num_threads(),
            "worker_mb": front.worker_mb(),
            "machine_free_mb": round(free_mb),
        }
        return figures | {"jobs": load(front, clients=clients, steps=steps, count=count, waits=True) | {"steps": steps}}


def followers(stream: str, count: int, step_s: float, steps: int) -> Figures:
    """So many readers of one job's events, or of the server's state while that job is made."""
    with _folder() as name:
        folder = Path(name)
        with measured_front(Fleet(step_s=step_s), folder) as front:
            alone = front.cost()
            blocker = _submit(front.server, _MOST_STEPS)  # until all follow, their job waits behind this
            job_id = _submit(front.server, steps)
            seen, before, after = _followed(front, folder, count, stream, blocker, job_id)
        sent = {step: sent_s for job, step, sent_s in json.loads((folder / "steps.json").read_text()) if job == job_id}
    # After its steps a job's events have numbers, too: those of its pictures and of its end.
    seen_s = [(sent[int(step)], each) for step, each in seen.pop("seen").items() if int(step) in sent]
    delays_ms = sorted(1000 * (time_s - sent_s) for sent_s, times_s in seen_s for time_s in times_s)
    rss_mb = max(before.rss_mb, after.rss_mb)
    return {
        "stream": stream,
        "followers": count,
        "step_s": step_s,
        "steps": steps,
        **seen,
        "told": len(delays_ms),
        **{f"delay_p{percent}_ms": round(percentile(delays_ms, percent), 1) for percent in _PERCENTS if delays_ms},
        "cpu_share": round(after.share_since(before), 3),
        "cpu_us_per_event": round(1e6 * (after.cpu_s - before.cpu_s) / max(seen["events"], 1), 1),
        "rss_mb": rss_mb,
        "kb_per_follower": round(1000 * (rss_mb - alone.rss_mb) / count, 1),
    }


def _followed(
    front: MeasuredFront, folder: Path, count: int, stream: str, blocker: str, job_id: str
) -> tuple[Figures, Cost, Cost]:
    """What the readers saw from the job's begin to its end, and the front's cost at both."""
    is_of_server = stream == STATUS_STREAM
    path = stream if is_of_server else f"{PATH}/{job_id}/stream"
    marks = [job_id, '"step":'] if is_of_server else ["id: 1-"]
    options = [f"--port={front.port}", f"--count={count}", f"--path={path}", *(f"--mark={mark}" for mark in marks)]
    command = ["-m", "benchmarks.followers", *options, f"--output={folder / 'followers.json'}"]
    with running(command, folder / "followers.log", subprocess.PIPE, subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != "following\n":
            raise ProcessEnded(f"the followers ended:\n{(folder / 'followers.log').read_text()[-2000:]}")
        before = front.cost()
        front.server.cancel(blocker)
        while front.server.job(job_id)["status"] in ("starting", "processing"):
            time.sleep(_POLL_S)
        after = front.cost()
        process.stdin.close()
        process.wait(_EXIT_S)
    seen: Figures = json.loads((folder / "followers.json").read_text())
    return seen, before, after


def _submit(server: LiveServer, steps: int) -> str:
    return server.submit({"prompt": "a red circle", "width": 64, "height": 64, "num_inference_steps": steps})


def load(
    front: MeasuredFront,
    *,
    clients: int,
    steps: int,
    count: int = 10**9,
    seconds: float = 10**9,
    waits: bool = False,
) -> Figures:
    """Runs ``front_load`` and adds what the front took for each answer."""
    options = [f"--port={front.port}", f"--clients={clients}", f"--steps={steps}", f"--count={count}"]
    command = [sys.executable, "-m", "benchmarks.front_load", *options, f"--seconds={seconds}"]
    before = front.cost()
    done = subprocess.run([*command, *(["--wait"] if waits else [])], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ProcessEnded(f"the load ended:\n{done.stderr[-2000:]}")
    after = front.cost()
    figures: Figures = json.loads(done.stdout)
    return figures | _used(before, after, figures)


def _used(before: Cost, after: Cost, figures: Figures) -> Figures:
    cpu_s = after.cpu_s - before.cpu_s
    return {
        "cpu_ms": round(1000 * cpu_s / figures["answers"], 3),
        "cpu_share": round(cpu_s / figures["seconds"], 3),
        "rss_mb": after.rss_mb,
    }


def fsync_ms() -> float:
    """What one durable write of a page takes where the data directories are."""
    with _folder() as folder:
        descriptor = os.open(Path(folder) / "probe", os.O_WRONLY | os.O_CREAT)
        try:
            times = []
            for _ in range(_FSYNCS):
                start_s = time.perf_counter()
                os.write(descriptor, bytes(4096))
                os.fsync(descriptor)
                times.append(time.perf_counter() - start_s)
        finally:
            os.close(descriptor)
    return round(1000 * percentile(sorted(times), 50), 3)


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="safelight-bench-")
