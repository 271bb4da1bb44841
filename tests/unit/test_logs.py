"""A JSON log is one object per line, whoever writes it and whatever stands in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from safelight.config import STUB_MODEL
from safelight.logs import JSONFormatter, about
from tests.server_process import ServerProcess

pytestmark = pytest.mark.anyio

ENVIRONMENT = {"STUB_STEP_S": "0.01", "STUB_LOAD_S": "0"}
FAULTS = "engine.begin@2=error;engine.step@5=hang"


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of its own; ``written`` reads what it wrote."""
    logger = logging.getLogger("safelight.test")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JSONFormatter(worker_id=3))
    logger.addHandler(handler)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def written(log: logging.Logger) -> list[dict[str, Any]]:
    handler = log.handlers[0]  # pytest adds its own
    assert isinstance(handler, logging.StreamHandler)
    return [json.loads(line) for line in handler.stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "text", ["two\nlines", "a\r\nb", '"quoted" \\', "\x1b[31mred\x00", "\u2028\u0085", "\ud800", "שלום 🖼"]
)
def test_nothing_in_a_message_breaks_its_line(log: logging.Logger, text: str) -> None:
    log.warning("got %s", text, extra={"job_id": text})
    (line,) = written(log)
    assert line["message"] == f"got {text}" and line["job_id"] == text


def test_a_line_says_when_how_bad_and_where_from(log: logging.Logger) -> None:
    log.error("gone")
    (line,) = written(log)
    assert line == {"ts": line["ts"], "level": "error", "logger": "safelight.test", "message": "gone", "worker_id": 3}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    age_s = datetime.now().astimezone() - datetime.fromisoformat(line["ts"])
    assert 0 <= age_s.total_seconds() < 5


def test_an_exception_is_one_member(log: logging.Logger) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    (line,) = written(log)
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: two\nlines")


async def test_tasks_know_what_they_are_about_and_no_others(log: logging.Logger) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        log.warning("task")

    with about(request_id="req_1", trace_id=""):
        with about(job_id="job_1"):
            task = asyncio.create_task(work())
        log.warning("inside", extra={"job_id": "job_2"})
    log.warning("outside")
    await task
    ids = {
        line["message"]: {name: line.get(name) for name in ("request_id", "job_id", "trace_id")}
        for line in written(log)
    }
    assert ids == {
        "inside": {"request_id": "req_1", "job_id": "job_2", "trace_id": None},
        "outside": {"request_id": None, "job_id": None, "trace_id": None},
        "task": {"request_id": "req_1", "job_id": "job_1", "trace_id": None},
    }


def test_every_line_of_both_processes_is_an_object_with_its_ids(tmp_path: Path) -> None:
    options = ("--model", STUB_MODEL, "--log-format", "json", "--log-level", "debug", "--hang-timeout-s", "0.5")
    with ServerProcess(tmp_path, *options, "--faults", FAULTS, environment=ENVIRONMENT) as server:
        server.wait_until_ready()
        answers = [_ask(server, name) for name in ("req-good", "req-failed", "req-hung")]
        assert [answer.status_code for answer in answers] == [200, 500, 200]
        _send_garbage(server)
        assert server.stop() == 0
    lines = [json.loads(line) for line in server.lines]
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in lines)

    def found(condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return next(line for line in lines if condition(line))

    assert found(lambda line: line["logger"].startswith("uvicorn"))["level"] == "warning"
    ended = found(lambda line: "succeeded" in line["message"])
    job_id = answers[0].headers["x-job-id"]
    assert (ended["request_id"], ended["job_id"], ended["worker_id"]) == ("req-good", job_id, 0)
    failed = found(lambda line: line["logger"] == "safelight.engine.worker")
    assert (failed["request_id"], failed["worker_id"]) == ("req-failed", 0) and "job_id" in failed
    assert "RuntimeError: a fault point raised this error" in failed["exception"]
    hung = found(lambda line: "its stacks follow" in line["message"])
    assert (hung["level"], hung["worker_id"]) == ("error", 0)
    stacks = [line for line in lines if line["logger"] == "safelight.server.worker_log"]
    assert any("fault" in line["message"] for line in stacks)  # the line in which it hangs
    assert {line["worker_id"] for line in stacks} == {0}
    assert found(lambda line: "lost its worker" in line["message"])["request_id"] == "req-hung"


def test_a_text_log_is_as_it_was(tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, "--model", STUB_MODEL, "--faults", "engine.begin@1=error", environment=ENVIRONMENT
    ) as server:
        server.wait_until_ready()
        assert _ask(server, "req-failed").status_code == 500
        assert server.stop() == 0
    text = "\n".join(server.lines)
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    assert re.search(stamp + r"INFO listening on http", text, re.MULTILINE)
    assert re.search(stamp + r"ERROR worker\[\d+\] job job_\w+ failed\nTraceback", text, re.MULTILINE)
    assert re.search(stamp + r"INFO job_\w+ of req-failed failed after 0 steps$", text, re.MULTILINE)


def test_what_nobody_catches_is_a_line_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, sys, threading, warnings\n"
        "from safelight import logs\n"
        "logs.configure('info', 'json', '', logging.StreamHandler(), worker_id=1)\n"
        "warnings.warn('two\\nlines')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('the\\nend')\n"
    )
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=30)
    warned, in_thread, uncaught = (json.loads(line) for line in ended.stderr.splitlines())
    assert ended.returncode == 1
    assert "UserWarning: two\nlines" in warned["message"] and warned["level"] == "warning"
    assert "ZeroDivisionError" in in_thread["exception"]
    assert uncaught["level"] == "critical" and "ValueError: the\nend" in uncaught["exception"]


def _send_garbage(server: ServerProcess) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"gar bage\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def _ask(server: ServerProcess, request_id: str) -> Any:
    body = {"prompt": "a red circle", "num_inference_steps": 3}
    return server.http.post("/v1/images/generations", json=body, headers={"x-request-id": request_id})
