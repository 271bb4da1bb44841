"""The real server with the stub engine, to be hurt; and the epilogue by which every test of this folder ends.

All processes of one run carry a mark in their environment, so that one left over is found whoever its parent is now.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil

from safelight.config import STUB_MODEL
from tests.server_process import ServerProcess

MARK = "STUB_RUN"
TIMEOUT_S = 30.0
TERMINAL = ("succeeded", "failed", "canceled")
_BAD_LINES = ("Traceback", "never retrieved", "was destroyed", "Exception ignored")
_SPARE_FILES = 2


class ChaosServer(ServerProcess):
    """On a data directory that outlives it: ``restart`` starts the next one on the same port."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        model: str = STUB_MODEL,
        step_s: float = 0.01,
        port: int = 0,
        **environment: str,
    ) -> None:
        self.folder = folder
        self.mark = environment.setdefault(MARK, uuid.uuid4().hex)
        self.options = (arguments, model, step_s, environment)
        super().__init__(
            folder,
            *("--model", model, "--port", str(port)),
            *arguments,
            environment={"STUB_STEP_S": str(step_s), **environment},
        )

    def restart(self, *arguments: str) -> ChaosServer:
        """The next server on this directory; ``arguments`` instead of the old ones if there are any."""
        old, model, step_s, environment = self.options
        port = int(self.url.rpartition(":")[2])
        return ChaosServer(self.folder, *(arguments or old), model=model, step_s=step_s, port=port, **environment)

    def kill(self) -> None:
        """kill -9, and the end of every process that it started."""
        self.process.kill()
        self.process.wait()

    def wait_until_ready(self) -> None:
        """``/readyz`` says so."""
        self.poll(lambda: self.get("/readyz").status_code == 200)

    def poll(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        """Asks again and again; what the condition returned when it was true."""
        end_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end_s, "timed out\n" + "\n".join(self.lines[-30:])
            time.sleep(0.01)
        return found

    # --- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, name: str | None = None, key: str = "", steps: int = 4, **members: Any) -> dict[str, Any]:
        """An accepted job: its prediction object."""
        answer = self.try_submit(name, key, steps, **members)
        assert answer.status_code in (200, 201), answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def try_submit(self, name: str | None = None, key: str = "", steps: int = 4, **members: Any) -> httpx.Response:
        """The answer to a request for a job, whatever it is."""
        body = {"input": {"prompt": "chaos", "seed": 1, "num_inference_steps": steps} | members}
        headers = {"x-key": key} if key else {}
        if name is not None:
            return self.http.put(f"/v1/predictions/{name}", json=body, headers=headers)
        return self.http.post("/v1/predictions", json=body, headers=headers)

    def prediction(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.get(f"/v1/predictions/{name}").json()
        return shown

    def wait_for(self, name: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The prediction once it has ended."""

        def ended() -> dict[str, Any] | None:
            shown = self.prediction(name)
            return shown if shown["status"] in TERMINAL else None

        shown: dict[str, Any] = self.poll(ended, timeout_s)
        return shown

    def wait_for_step(self, name: str, step: int = 1) -> dict[str, Any]:
        """The prediction once it runs and has done so many steps."""

        def has_come() -> dict[str, Any] | None:
            shown = self.prediction(name)
            return shown if shown["progress"]["step"] >= step and shown["status"] == "processing" else None

        shown: dict[str, Any] = self.poll(has_come)
        return shown

    def picture(self, name: str, index: int = 0) -> bytes:
        answer = self.get(f"/v1/predictions/{name}/output/{index}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def worker_pid(self) -> int:
        """The worker process there is now."""
        return int(self.poll(lambda: self.worker_pids()[-1:])[0])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label values that are not given."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            is_it = line.startswith((f"safelight_{name}{{", f"safelight_{name} "))
            if is_it and all(f'{label}="{value}"' in line for label, value in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def is_balanced(self) -> bool:
        """accepted = ended + waiting + running, in one scrape."""
        text = self.get("/metrics").text
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name = line.partition("{")[0].partition(" ")[0].removeprefix("safelight_")
                sums[name] = sums.get(name, 0.0) + float(line.rpartition(" ")[2])
        ended = sums.get("requests_total", 0.0)
        return sums["requests_accepted_total"] == ended + sums["requests_waiting"] + sums["requests_running"]

    # --- detectors --------------------------------------------------------------------------------------------------

    def open_files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def complaints(self) -> list[str]:
        """Lines of the log that no server should write."""
        return [line for line in self.lines if any(bad in line for bad in _BAD_LINES)]

    def end(self) -> None:
        """SIGTERM, exit code 0, and the epilogue."""
        assert self.stop() == 0
        self._reader.join(5)
        assert left_processes(self.mark) == []
        assert self.complaints() == []
        assert left_files(self.folder) == []
        assert damage(self.folder) == []


def kill_left_processes(mark: str) -> None:
    """Ends what a test that failed has left."""
    for found in _marked(mark):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(int(found.split()[0]), signal.SIGKILL)


def left_processes(mark: str, patience_s: float = 1.0) -> list[str]:
    """Processes of that run that are still there."""
    end_s = time.monotonic() + patience_s
    while (found := _marked(mark)) and time.monotonic() < end_s:
        time.sleep(0.02)
    return found


def _marked(mark: str) -> list[str]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                environment = Path(entry.path, "environ").read_bytes()
                if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                    found.append(f"{entry.name} {Path(entry.path, 'cmdline').read_bytes()!r}")
            except OSError:
                continue
    return found


def left_files(folder: Path) -> list[str]:
    """Half-written files, and pictures that belong to no job."""
    known = {name for names in _rows(folder).values() for name in names}
    return [
        path.name for path in (folder / "results").iterdir() if path.name.endswith(".tmp") or path.name not in known
    ]


def damage(folder: Path) -> list[str]:
    """Jobs without their pictures, pictures that are not whole, a database that is not sound."""
    found = []
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
        found.append("the database")
    connection.close()
    for job_id, names in _rows(folder).items():
        for name in names:
            path = folder / "results" / name
            if not path.exists() or not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
                found.append(f"{job_id}: {name}")
    return found


def _rows(folder: Path) -> dict[str, list[str]]:
    """Picture files by job, as the database has them."""
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    try:
        rows = connection.execute("SELECT id, result FROM jobs").fetchall()
    finally:
        connection.close()
    return {name: [image["file"] for image in json.loads(result)["images"]] if result else [] for name, result in rows}


class LivenessProbe:
    """Asks ``/livez`` all the time on one connection, from a process of its own: this one is too busy to measure."""

    _CODE = """
import http.client, json, select, sys, time
host, port = sys.argv[1:3]
seconds, errors, connection = [], 0, None
while not select.select([sys.stdin], [], [], 0.01)[0]:
    start = time.monotonic()
    try:
        connection = connection or http.client.HTTPConnection(host, int(port), timeout=5)
        connection.request("GET", "/livez"); answer = connection.getresponse(); answer.read()
        errors += answer.status != 200
    except (OSError, http.client.HTTPException):
        errors += 1; connection = None
    seconds.append(time.monotonic() - start)
    if len(seconds) == 1:
        print(flush=True)
print(json.dumps([seconds, errors]))
"""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._process = subprocess.Popen(
            ["python3", "-S", "-c", self._CODE, host, port], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        self.seconds: list[float] = []
        self.errors = 0

    def __enter__(self) -> LivenessProbe:
        assert self._process.stdout is not None
        self._process.stdout.readline()  # after the first answer
        return self

    def __exit__(self, *_: object) -> None:
        written = self._process.communicate(timeout=10)[0]  # which closes its stdin: the sign to end
        self.seconds, self.errors = json.loads(written)
        self.seconds.sort()

    def quantile_s(self, share: float) -> float:
        return self.seconds[min(int(len(self.seconds) * share), len(self.seconds) - 1)]

    def assert_calm(self, p99_s: float = 0.1, max_s: float = 0.25) -> None:
        """Every probe was answered, and in time."""
        assert self.errors == 0
        assert len(self.seconds) > 5
        assert self.quantile_s(0.99) <= p99_s, self.seconds[-10:]
        assert self.seconds[-1] <= max_s, self.seconds[-10:]


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """``work`` in so many threads; results in order."""
    results: list[Any] = [None] * count
    threads = [threading.Thread(target=lambda n=number: results.__setitem__(n, work(n))) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
