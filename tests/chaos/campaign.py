"""Kills workers and servers at random moments while jobs come in, and counts what was lost or done twice.

``python -m tests.chaos.campaign --seed 1 --jobs 1000 --worker-kills 50 --server-kills 50 --out FILE``; the moments are
those of the seed, the machine adds its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2 as httpx
import psutil

from safelight import __version__
from safelight.checkpoint import open_checkpoint
from safelight.config import STUB_MODEL
from safelight.engine.images import encode_image
from safelight.engine.stub import draw
from safelight.params import GenerationParams
from tests.chaos.chaos_server import ChaosServer, damage, left_files, left_processes

_STEPS = 4
_SUBMITTERS = 4
_LONGEST_PAUSE_S = 1.2
_MEASURED_DEATHS = 5


@dataclass
class Report:
    """What happened, and what should not have."""

    seed: int
    accepted: int = 0
    worker_kills: int = 0
    server_kills: int = 0
    lost: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    wrong_pictures: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    requests_refused: int = 0
    server_recovery_s: list[float] = field(default_factory=list)
    worker_recovery_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.failed or self.wrong_pictures or self.duplicated or self.left_over)


class Campaign:
    """One data directory, one port, many servers."""

    def __init__(self, server: ChaosServer, seed: int, jobs: int) -> None:
        self.report = Report(seed)
        self.accepted: dict[str, int] = {}
        self._server = server
        self._jobs = jobs
        self._source = random.Random(seed)
        self._next = iter(range(jobs))
        self._lock = threading.Lock()

    @classmethod
    def on(cls, folder: Path, seed: int, jobs: int) -> Campaign:
        """With a server whose queue holds all of the jobs."""
        return cls(ChaosServer(folder, "--queue-limit", str(jobs + 10)), seed, jobs)

    def run(self, worker_kills: int, server_kills: int) -> Report:
        """Submits and kills side by side, then waits for every job to end and checks all of them."""
        start_s = time.monotonic()
        pace_s = _LONGEST_PAUSE_S / 2 * (worker_kills + server_kills) / self._jobs * _SUBMITTERS
        submitters = [threading.Thread(target=self._submit_all, args=(pace_s,)) for _ in range(_SUBMITTERS)]
        for submitter in submitters:
            submitter.start()
        victims = ["worker"] * worker_kills + ["server"] * server_kills
        self._source.shuffle(victims)
        for victim in victims:
            time.sleep(self._source.uniform(0.0, _LONGEST_PAUSE_S))
            self._kill_worker() if victim == "worker" else self._kill_server()
        for submitter in submitters:
            submitter.join()
        self._server.wait_until_ready()
        for number in range(_MEASURED_DEATHS):
            self._measure_worker_recovery(number)
        self.check()
        self.report.seconds = round(time.monotonic() - start_s, 1)
        return self.report

    def _submit_all(self, pace_s: float) -> None:
        while True:
            with self._lock:
                number = next(self._next, None)
            if number is None:
                return
            time.sleep(pace_s)
            self._submit(number)

    def _submit(self, number: int) -> None:
        """Until it is accepted: whoever got no answer asks again under the same name."""
        name = f"job-{number}"
        while True:
            try:
                answer = self._server.try_submit(name, steps=_STEPS, seed=number)
                if answer.status_code in (200, 201):
                    self.accepted[name] = number
                    return
                self.report.requests_refused += 1
            except httpx.HTTPError:
                self.report.requests_refused += 1
            time.sleep(0.02)

    def _kill_worker(self) -> None:
        """At whatever it does: loading, idle, at a step, on its way out."""
        pids = self._server.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.report.worker_kills += 1

    def _kill_server(self) -> None:
        self._server.kill()
        self.report.server_kills += 1
        self._note_end()
        killed_s = time.monotonic()
        self._server = self._server.restart()
        self.report.server_recovery_s.append(round(time.monotonic() - killed_s, 3))

    def _measure_worker_recovery(self, number: int) -> None:
        """From a death to ready again; a job before each, since deaths in a row are not replaced at once."""
        self._server.wait_for(self._server.submit(f"measured-{number}")["id"])
        os.kill(self._server.worker_pid(), signal.SIGKILL)
        killed_s = time.monotonic()
        self._server.poll(lambda: self._server.get("/readyz").status_code != httpx.codes.OK)
        self._server.wait_until_ready()
        self.report.worker_recovery_s.append(round(time.monotonic() - killed_s, 3))

    def _note_end(self) -> None:
        self.report.left_over += left_processes(self._server.mark) + self._server.complaints()
        self._server.__exit__(None, None, None)

    def check(self) -> Report:
        """Looks at every job that was accepted, ends the server, and looks at what is left on disk."""
        report = self.report
        report.accepted = len(self.accepted)
        for name, number in self.accepted.items():
            answer = self._server.get(f"/v1/predictions/{name}")
            if answer.status_code != httpx.codes.OK:
                report.lost.append(name)
                continue
            shown = self._server.wait_for(name, 120)
            if shown["status"] != "succeeded":
                report.failed.append(f"{name}: {shown['status']} {shown['error_code']}")
            elif self._server.picture(name) != expected_picture(number):
                report.wrong_pictures.append(name)
            attempts = str(shown["attempt"])
            report.attempts[attempts] = report.attempts.get(attempts, 0) + 1
        folder = self._server.folder
        if self._server.stop() != 0:
            report.left_over.append("the exit code")
        self._note_end()
        report.duplicated = duplicates(folder)
        report.left_over += left_files(folder) + damage(folder)
        return report


def expected_picture(seed: int) -> bytes:
    """What the stub engine draws for that seed, made here by the same code without any server."""
    card = open_checkpoint(STUB_MODEL).card
    params = GenerationParams(
        prompt="chaos",
        width=64,
        height=64,
        num_inference_steps=_STEPS,
        guidance_scale=card.default_guidance_scale,
        max_sequence_length=64,
        seed=seed,
    )
    return encode_image(draw(params, seed), params, seed, STUB_MODEL).data


def duplicates(folder: Path) -> list[str]:
    """Jobs that were accepted twice under one name, or have more than one set of pictures."""
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    rows = connection.execute("SELECT id, json_extract(CAST(request AS TEXT), '$.client_id') FROM jobs").fetchall()
    connection.close()
    names = [name for _, name in rows]
    found = [name for name in set(names) if names.count(name) > 1]
    files = [path.name.rsplit("-", 2)[0] for path in (folder / "results").iterdir()]
    return found + [job_id for job_id in set(files) if files.count(job_id) > 1]


def _median_and_max(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "max": max(seconds)} if seconds else {}


def main() -> int:
    """Prints and writes the report; 1 if anything was lost, wrong, doubled or left."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--worker-kills", type=int, default=50)
    parser.add_argument("--server-kills", type=int, default=50)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Campaign.on(Path(folder), args.seed, args.jobs).run(args.worker_kills, args.server_kills)
    command = f"python -m tests.chaos.campaign {' '.join(sys.argv[1:])}".strip()
    result = asdict(report) | {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{psutil.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "safelight": __version__,
        "server_recovery_s": _median_and_max(report.server_recovery_s),
        "worker_recovery_s": _median_and_max(report.worker_recovery_s),
        "pictures_sha256": hashlib.sha256(b"".join(map(expected_picture, range(args.jobs)))).hexdigest()[:16],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
