"""A Safelight that a benchmark starts, or one that runs already, and what it tells of itself between measurements."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load_client import IMAGES_PATH, PNG_IN_JSON
from benchmarks.processes import ProcessEnded, free_port, running
from benchmarks.traffic import Asked

_POLL_S = 0.02
_QUICK_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture over HTTP: seconds from sending the request to the last byte of the answer."""

    seconds: float
    job_id: str
    params: dict[str, Any]


class LiveServer:
    """A server under ``url``. Methods raise ``OSError`` if it does not do as asked."""

    def __init__(self, url: str, timeout_s: float, process: subprocess.Popen[str] | None = None) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._process = process
        self._client = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def wait_until_ready(self) -> None:
        """Asks ``/readyz`` until it is 200. Raises ``ProcessEnded`` if it never is."""
        end_s = time.monotonic() + self._timeout_s
        while (state := self._state()) != "ready":
            if state == "failed" or time.monotonic() > end_s or (self._process and self._process.poll() is not None):
                raise ProcessEnded(f"{self.url} was not ready within {self._timeout_s:.0f} s, or failed")
            time.sleep(_POLL_S)

    def _state(self) -> str:
        """``ready`` if it takes jobs, else what it says of itself; empty while it does not answer."""
        try:
            answer = self._client.get("/readyz", timeout=_QUICK_ANSWER_S)
        except httpx.TransportError:
            return ""
        return "ready" if answer.status_code == httpx.codes.OK else str(answer.json()["status"])

    def wait_until_idle(self) -> None:
        """Until no job waits or runs, so that one measurement leaves nothing to the next."""
        end_s = time.monotonic() + self._timeout_s
        while any(self.status()["queue"][name] for name in ("waiting", "running")):
            if time.monotonic() > end_s:
                raise OSError(f"{self.url} still has jobs after {self._timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def status(self) -> dict[str, Any]:
        """The answer of ``/v1/status``."""
        status: dict[str, Any] = self._get("/v1/status").json()
        return status

    def totals(self) -> dict[str, float]:
        """Sums, counts and counters of ``/metrics``, by name and labels: ``safelight_stage_seconds_sum encode``."""
        families = text_string_to_metric_families(self._get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for sample in samples
            if sample.name.endswith(("_sum", "_count", "_total"))
        }

    def job_seconds(self, job_id: str) -> dict[str, float]:
        """``queue_time`` and ``predict_time`` as the job API reports them."""
        metrics: dict[str, float] = self.job(job_id)["metrics"]
        return metrics

    def submit(self, asked: Mapping[str, Any]) -> str:
        """A job by the job API; its id."""
        answer = self._client.post("/v1/predictions", json={"input": asked})
        if answer.status_code != httpx.codes.CREATED:
            raise OSError(f"{self.url} answered {answer.status_code}: {answer.text[:500]}")
        job_id: str = answer.json()["id"]
        return job_id

    def cancel(self, job_id: str) -> None:
        """Ends a job; returns when it has."""
        self._client.post(f"/v1/predictions/{job_id}/cancel").raise_for_status()

    def job(self, job_id: str) -> dict[str, Any]:
        """How a job is, as the job API has it."""
        job: dict[str, Any] = self._get(f"/v1/predictions/{job_id}").json()
        return job

    def picture(self, asked: Asked) -> bytes:
        """One picture as a file."""
        return base64.b64decode(self._asked(asked).json()["data"][0]["b64_json"])

    def draw(self, asked: Asked) -> Drawn:
        """One picture, as a client that waits for it gets it."""
        start_s = time.perf_counter()
        answer = self._asked(asked)
        seconds = time.perf_counter() - start_s
        return Drawn(seconds, answer.headers["x-job-id"], answer.json()["params"])

    def _asked(self, asked: Asked) -> httpx.Response:
        try:
            answer = self._client.post(IMAGES_PATH, json=asked.body())
        except httpx.TransportError as error:
            raise OSError(f"{self.url} does not answer: {error!r}") from None
        if answer.status_code != httpx.codes.OK or PNG_IN_JSON not in answer.content:
            raise OSError(f"{self.url} answered {answer.status_code}: {answer.text[:500]}")
        return answer

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path, timeout=_QUICK_ANSWER_S).raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(f"{self.url}{path}: {error!r}") from None


def gained(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float | None:
    """How much a total grew over all its labels, ``None`` if the server does not count it."""
    keys = [key for key in after if key.partition(" ")[0] == name]
    return sum(after[key] - before.get(key, 0.0) for key in keys) if keys else None


def split_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of the benchmark, and after ``--`` those of the server that it starts."""
    end = options.index("--") if "--" in options else len(options)
    return list(options[:end]), list(options[end + 1 :])


@contextlib.contextmanager
def started_server(
    options: Sequence[str], folder: Path, timeout_s: float, program: Sequence[str] = ("run.py",)
) -> Iterator[LiveServer]:
    """``python PROGRAM`` with its data in ``folder``, unless ``options`` name another place; it may not be ready yet.

    Raises ``ProcessEnded`` with the end of its log if it or the measurement fails.
    """
    port, log = free_port(), folder / "server.log"
    own = [*program, "--port", str(port), "--data-dir", str(folder / "data")]
    with running([*own, *options], log) as process:
        server = LiveServer(f"http://127.0.0.1:{port}", timeout_s, process)
        try:
            with contextlib.closing(server):
                yield server
        except (OSError, ProcessEnded) as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise ProcessEnded(f"{error}\nthe server's log ends with:\n{tail}") from None
