"""Traces, as a collector gets them from the real server and its real worker process with the stub engine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from safelight.config import STUB_MODEL
from safelight.jobs import JobRequest
from tests.collector import Collector, ReceivedSpan
from tests.server_process import ROOT, ServerProcess
from tests.unit.running_front import asked

CLIENT_TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
PATH = "/v1/images/generations"
REQUEST = f"POST {PATH}"
OPTIONS = ("--model", STUB_MODEL, "--log-format", "json")
ENVIRONMENT = {"OTEL_BSP_SCHEDULE_DELAY": "50", "STUB_STEP_S": "0.02", "STUB_ROWS": "4", "STUB_LOAD_S": "0"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Collector]]:
    """One server for all tests that do not end it."""
    folder = tmp_path_factory.mktemp("data")
    with (
        Collector() as collector,
        ServerProcess(folder, *OPTIONS, "--otlp-endpoint", collector.url, environment=ENVIRONMENT) as server,
    ):
        server.wait_until_ready()
        yield server, collector
        assert server.stop() == 0


@pytest.fixture
def server(running: tuple[ServerProcess, Collector]) -> ServerProcess:
    return running[0]


@pytest.fixture
def collector(running: tuple[ServerProcess, Collector]) -> Collector:
    running[1].forget()
    return running[1]


def _ask(server: ServerProcess, path: str = PATH, traceparent: str = TRACEPARENT, **members: Any) -> Any:
    """The answer, which is taken for a good one by nobody yet."""
    headers = {"traceparent": traceparent, "x-key": "key-marker"}
    body = {"prompt": "prompt-marker", "num_inference_steps": 3, **members}
    return server.http.post(path, json=body, headers=headers)


def _only(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def _is_whole(spans: list[ReceivedSpan], count: int = 1) -> bool:
    """Whether so many jobs have ended in both processes and in the request."""
    names = [span.name for span in spans]
    return all(names.count(name) >= count for name in ("store", "encode image", REQUEST))


def test_a_trace_reaches_from_the_clients_span_to_each_denoising_step_in_the_worker(
    server: ServerProcess, collector: Collector
) -> None:
    assert _ask(server).status_code == 200
    spans = collector.wait_for(_is_whole)
    assert {span.trace_id for span in spans} == {CLIENT_TRACE}
    request, attempt, denoise = (_only(spans, name) for name in (REQUEST, "attempt", "denoise"))
    assert request.parent_id == CLIENT_SPAN
    for name, parent in (
        *((name, request) for name in ("queue", "attempt", "store")),
        *((name, attempt) for name in ("encode text", "denoise", "decode", "encode image")),
    ):
        assert _only(spans, name).parent_id == parent.id, name
        assert parent.holds(_only(spans, name)), name
    steps = [span for span in spans if span.name == "step"]
    assert [span.attributes["safelight.step"] for span in steps] == [1, 2, 3]
    assert all(step.parent_id == denoise.id and denoise.holds(step) for step in steps)
    assert all(before.end_ns <= after.begin_ns for before, after in itertools.pairwise(steps))
    assert all(step.end_ns - step.begin_ns >= 0.02e9 for step in steps)
    stages = [_only(spans, name) for name in ("queue", "encode text", "denoise", "decode", "encode image", "store")]
    assert all(before.end_ns <= after.begin_ns for before, after in itertools.pairwise(stages))
    assert attempt.resource["process.pid"] == server.process.pid
    assert denoise.resource["process.pid"] in server.worker_pids()
    assert {span.resource["service.name"] for span in spans} == {"safelight"}


def test_spans_say_what_was_asked_and_where_it_ran_in_opentelemetrys_words(
    server: ServerProcess, collector: Collector
) -> None:
    job_id = _ask(server, seed=7, n=2).headers["x-job-id"]
    spans = collector.wait_for(_is_whole)
    request, attempt = _only(spans, REQUEST).attributes, _only(spans, "attempt").attributes
    assert (request["http.request.method"], request["http.route"]) == ("POST", PATH)
    assert (request["http.response.status_code"], request["safelight.job.id"]) == (200, job_id)
    assert (request["gen_ai.request.model"], request["gen_ai.request.seed"]) == (STUB_MODEL, 7)
    assert (request["gen_ai.output.type"], request["gen_ai.request.choice.count"]) == ("image", 2)
    assert (attempt["safelight.worker.id"], attempt["safelight.device"], attempt["safelight.attempt"]) == (0, "cpu", 1)
    assert (attempt["safelight.outcome"], attempt["safelight.steps"]) == ("succeeded", 6)
    assert {span.attributes["safelight.step.images"] for span in spans if span.name == "step"} == {2}


def test_neither_prompt_nor_key_leaves_in_a_span(server: ServerProcess, collector: Collector) -> None:
    assert _ask(server, f"{PATH}?api_key=query-marker").status_code == 200
    assert _ask(server, prompt="prompt-marker", num_inference_steps="wrong-marker").status_code == 400
    assert _ask(server, prompt="out of memory").status_code == 500
    collector.wait_for(lambda spans: [span.name for span in spans].count(REQUEST) == 3)
    collector.wait_for_names("store", "encode image")
    sent = b"".join(collector.bodies)
    assert REQUEST.encode() in sent
    for secret in (b"marker", b"out of memory"):
        assert secret not in sent


def test_a_failed_attempt_and_a_refused_request_say_so(server: ServerProcess, collector: Collector) -> None:
    _ask(server, prompt="out of memory")
    spans = collector.wait_for_names("attempt", "store", REQUEST)
    assert _only(spans, "attempt").attributes["error.type"] == "out_of_memory"
    assert "does not fit into the memory" in _only(spans, "attempt").error
    assert _only(spans, REQUEST).attributes["http.response.status_code"] == 500
    collector.forget()
    _ask(server, n=0)
    (refused,) = collector.wait_for_names(REQUEST)
    assert refused.attributes["http.response.status_code"] == 400


@pytest.mark.parametrize("wrong", ["", "00-zz-00-01", f"00-{'0' * 32}-{CLIENT_SPAN}-01", f"ff-{CLIENT_TRACE}-x"])
def test_a_malformed_traceparent_is_ignored(server: ServerProcess, collector: Collector, wrong: str) -> None:
    assert _ask(server, traceparent=wrong, num_inference_steps=1).status_code == 200
    spans = collector.wait_for(_is_whole)
    assert _only(spans, REQUEST).parent_id == ""
    assert len({span.trace_id for span in spans}) == 1 and spans[0].trace_id != CLIENT_TRACE


def test_what_the_client_does_not_sample_nobody_records(server: ServerProcess, collector: Collector) -> None:
    assert _ask(server, traceparent=f"00-{'1' * 32}-{CLIENT_SPAN}-00").status_code == 200
    server.get("/v1/status")
    assert _ask(server).status_code == 200  # and of requests that make no job nobody records anything either
    spans = collector.wait_for(_is_whole)
    assert {span.trace_id for span in spans} == {CLIENT_TRACE}
    assert len([span for span in spans if span.name.startswith(("GET", "POST"))]) == 1


def test_jobs_that_share_steps_have_spans_of_their_own(server: ServerProcess, collector: Collector) -> None:
    traces = ["1" * 32, "2" * 32]
    threads = [
        threading.Thread(
            target=_ask, args=(server, PATH, f"00-{trace}-{CLIENT_SPAN}-01"), kwargs={"num_inference_steps": 20}
        )
        for trace in traces
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = collector.wait_for(lambda spans: _is_whole(spans, count=2))
    for trace in traces:
        steps = [span for span in spans if span.name == "step" and span.trace_id == trace]
        assert len(steps) == 20
        assert {span.attributes["safelight.step.batch_images"] for span in steps} >= {2}


def test_a_killed_worker_leaves_its_attempt_with_an_error_and_the_next_is_linked_to_it(
    server: ServerProcess, collector: Collector
) -> None:
    asking = threading.Thread(target=_ask, args=(server,), kwargs={"num_inference_steps": 50})
    asking.start()
    server.wait_until(lambda status: any(job["step"] > 2 for job in status["workers"][0]["jobs"]))
    (worker_pid,) = server.worker_pids()
    os.kill(worker_pid, signal.SIGKILL)
    asking.join()
    spans = collector.wait_for(_is_whole)
    lost, done = (span for span in spans if span.name == "attempt")
    assert lost.attributes["error.type"] == "worker_crashed" and "exit code -9" in lost.error
    assert (lost.attributes["safelight.attempt"], done.attributes["safelight.attempt"]) == (1, 2)
    assert done.error == "" and done.links == [lost.id]
    waits = [span for span in spans if span.name == "queue"]
    assert len(waits) == 2 and lost.end_ns <= waits[1].begin_ns <= waits[1].end_ns <= done.begin_ns
    assert {span.parent_id for span in (lost, done, *waits)} == {_only(spans, REQUEST).id}
    assert len([span for span in spans if span.name == "step"]) == 50  # those of the killed worker went with it


def test_log_lines_of_both_processes_name_the_trace(server: ServerProcess, collector: Collector) -> None:
    job_id = _ask(server).headers["x-job-id"]
    collector.wait_for(_is_whole)
    ended = json.loads(server.logged(f"{job_id}.*succeeded|succeeded.*{job_id}"))
    assert ended["trace_id"] == CLIENT_TRACE


def test_a_trace_goes_on_in_the_next_server(tmp_path: Path) -> None:
    with Collector() as collector:
        options = (*OPTIONS, "--otlp-endpoint", collector.url)
        with ServerProcess(tmp_path, *options, environment=ENVIRONMENT) as server:
            server.wait_until_ready()
            body = {"input": {"prompt": "a", "num_inference_steps": 200}}
            headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
            server.http.post("/v1/predictions", json=body, headers=headers)
            server.wait_until(lambda status: any(job["step"] > 2 for job in status["workers"][0]["jobs"]))
            request = collector.wait_for_names("POST /v1/predictions")
            server.process.kill()
            server.process.wait()
        with ServerProcess(tmp_path, *options, environment=ENVIRONMENT | {"STUB_STEP_S": "0"}) as server:
            spans = collector.wait_for_names("store", "encode image")
            assert server.stop() == 0
    assert {span.trace_id for span in spans} == {CLIENT_TRACE}
    assert {span.trace_state for span in spans} == {"vendor=1"}
    attempt = _only(spans, "attempt")  # the first one ended with its server
    assert attempt.attributes["safelight.attempt"] == 2
    first, second = (span for span in spans if span.name == "queue")
    assert attempt.parent_id == first.parent_id == second.parent_id == _only(request, "POST /v1/predictions").id


def test_a_collector_that_is_down_costs_one_line_and_no_request(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        environment = ENVIRONMENT | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        with ServerProcess(tmp_path, *OPTIONS, "--otlp-endpoint", url, environment=environment) as server:
            server.wait_until_ready()
            for _ in range(3):
                assert _ask(server).status_code == 200
            server.wait_for_line("does not take spans")
            server.wait_for_line("does not take spans")  # the other process
            for _ in range(3):
                assert _ask(server).status_code == 200
            start_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - start_s < 5
    lines = [json.loads(line) for line in server.lines]
    told = [line for line in lines if line["level"] not in ("info", "debug")]
    assert [line["logger"] for line in told] == ["safelight.otlp"] * 2
    assert {line.get("worker_id") for line in told} == {None, 0}


def test_without_a_collector_no_process_imports_what_would_send(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"}
    with ServerProcess(tmp_path, *OPTIONS, environment=environment) as server:
        server.wait_until_ready()
        assert _ask(server).status_code == 200
        assert server.stop() == 0
    imported = [line.rpartition("|")[2].strip(' "}') for line in server.lines if "import time:" in line]
    relayed = [line for line in server.lines if "import time:" in line and line.startswith("{")]
    assert "safelight.server.serve" in imported and "safelight.tracing" in imported
    assert any("safelight.engine.stub" in line for line in relayed)
    assert not [name for name in imported if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
    assert not [line for line in relayed if "opentelemetry" in line]  # FastAPI has the bare API in the front


def test_a_collector_without_the_extra_is_refused_in_a_sentence(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "from safelight.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    options = ("serve", "--port", "0", "--data-dir", str(tmp_path), "--otlp-endpoint", "http://127.0.0.1:4318")
    ended = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr == (
        "safelight: --otlp-endpoint='http://127.0.0.1:4318/v1/traces' needs OpenTelemetry: "
        "pip install 'safelight[otel]'\n"
    )


def test_a_wrong_variable_of_opentelemetrys_is_refused_in_a_sentence(tmp_path: Path) -> None:
    options = ("serve", "--port", "0", "--data-dir", str(tmp_path), "--otlp-endpoint", "http://127.0.0.1:4318")
    ended = subprocess.run(
        [sys.executable, "-m", "safelight", *options],
        capture_output=True,
        text=True,
        timeout=30,
        env=os.environ | {"OTEL_BSP_MAX_QUEUE_SIZE": "1"},
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("safelight: traces cannot begin") and ended.stderr.count("\n") == 1


def test_jobs_of_a_server_that_knew_no_traces_are_read(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "jobs.sqlite3")
    written = msgspec.json.encode(asked())
    (old,) = database.execute("SELECT json_remove(CAST(? AS TEXT), '$.trace_context')", (written,)).fetchone()
    database.close()
    assert "trace_context" in written.decode() and "trace_context" not in old
    assert msgspec.json.decode(old, type=JobRequest) == asked()


def test_the_cost_in_the_docs_is_the_recorded_one() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    found = json.loads((ROOT / "benchmarks" / "results" / "tracing.json").read_text())
    job_ms, step_ms = found["added_ms_per_job"], found["added_us_per_step"] / 1000
    assert f"{job_ms:.2f} ms more of CPU per job and {step_ms:.2f} ms per step" in page
