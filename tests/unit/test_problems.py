"""Error answers, whatever went wrong and wherever: one body, the right headers, an id, no traceback."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from safelight.errors import (
    JobCancelled,
    OutOfMemory,
    QueueFull,
    SafelightError,
    ShuttingDown,
    Unavailable,
    WorkerCrashed,
)
from safelight.server import loader as loader_module
from safelight.server import problems
from safelight.server.app import create_app
from safelight.server.request_id import RequestId
from tests.unit.running_front import make_front, running_front, serving, submit, until

pytestmark = pytest.mark.anyio

URL = "/v1/images/generations"


async def _answer_to(error: Exception, path: str = "/v1/images/x") -> httpx.Response:
    app = FastAPI()
    problems.install(app, [])

    @app.get("/{path:path}")
    async def fail(request: Request) -> None:
        raise error

    transport = httpx.ASGITransport(RequestId(app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get(path, headers={"x-request-id": "req_mine"})


@pytest.mark.parametrize(
    ("error", "retry_after", "should_retry"),
    [
        (QueueFull("64 jobs wait", retry_after_s=7), "7", None),
        (QueueFull("64 jobs wait"), "10", None),
        (ShuttingDown("it drains", retry_after_s=5), "5", None),
        (Unavailable("not yet", retry_after_s=1), "1", None),
        (OutOfMemory("too large"), None, "false"),
        (WorkerCrashed("it died"), None, None),
        (JobCancelled("gone"), None, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_an_error_becomes_the_merged_body_and_the_headers_that_clients_obey(
    error: SafelightError, retry_after: str | None, should_retry: str | None
) -> None:
    answer = await _answer_to(error)
    assert answer.status_code == error.status
    assert answer.headers["x-request-id"] == "req_mine"
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers.get("x-should-retry") == should_retry
    assert answer.json() == {
        "type": f"urn:safelight:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "instance": "/v1/images/x#req_mine",
        "error": {"message": error.message, "type": error.error_type, "param": None, "code": error.code},
    }


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/v1/images/generations", "application/json"),
        ("/v1/models", "application/json"),
        ("/v1/status", "application/problem+json"),
        ("/livez", "application/problem+json"),
    ],
)
async def test_openais_routes_answer_plain_json_and_the_others_problem_json(path: str, media_type: str) -> None:
    assert (await _answer_to(QueueFull("full"), path)).headers["content-type"] == media_type


async def test_a_defect_is_told_without_its_cause_and_logged_with_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await _answer_to(ValueError("the secret cause"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "req_mine"
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if "req_mine" in record.getMessage()]
    assert record.exc_info and "the secret cause" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_json"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "body_too_large"),
        (415, "unsupported_media_type"),
    ],
)
async def test_an_http_exception_of_the_framework_gets_the_same_body(status: int, code: str) -> None:
    answer = await _answer_to(HTTPException(status, "a detail", headers={"x-extra": "1"}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-extra"] == "1"
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("found", "code", "param", "message"),
    [
        (
            {"type": "missing", "loc": ("body", "prompt"), "msg": "m"},
            "missing_required_parameter",
            "prompt",
            "required",
        ),
        ({"type": "extra_forbidden", "loc": ("body", "x"), "msg": "m"}, "unknown_parameter", "x", "not a parameter"),
        ({"type": "int_type", "loc": ("body", "a", 0, "b"), "msg": "why"}, "invalid_value", "a.0.b", "is wrong: why"),
        ({"type": "json_invalid", "loc": ("body", 7), "msg": "m"}, "invalid_json", None, "not JSON"),
        ({"type": "missing", "loc": ("body",), "msg": "m"}, "missing_required_parameter", None, "a JSON object"),
    ],
)
def test_a_finding_of_pydantic_becomes_our_error(
    found: dict[str, Any], code: str, param: str | None, message: str
) -> None:
    error = problems.from_validation(found)
    assert (error.code, error.param) == (code, param)
    assert message in error.message


# --- over the real server -----------------------------------------------------------------------------------------


async def test_what_is_not_there_is_a_404_in_our_form(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        for path in ("/nothing", "/v1/images", "/v1/images/upscale", "/%00", "/..%2f..%2fetc/passwd", "/v1/%ff"):
            answer = await client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "not_found"
            assert answer.headers["x-request-id"]
            assert answer.headers["x-should-retry"] == "false"


async def test_a_wrong_method_is_a_405_that_names_the_right_one(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        for method, path, allowed in (
            ("GET", URL, "POST"),
            ("PUT", URL, "POST"),
            ("POST", "/livez", "GET"),
            ("DELETE", "/v1/models", "GET"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
            assert answer.headers["allow"] == allowed
            assert answer.headers["x-request-id"]


async def test_a_full_queue_refuses_with_429_and_a_retry_after(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=1) as front,
        serving(front) as client,
    ):
        await submit(front)
        answer = await client.post(URL, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers


async def test_a_failed_load_refuses_with_503_a_retry_after_and_the_sentence(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "fails_to_load", model=str(checkpoint_dir)) as front, serving(front) as client:
        waiting = asyncio.create_task(client.post(URL, json={"prompt": "a"}))
        await until(front.changes, lambda: front.state == "failed")
        for answer in (await waiting, await client.post(URL, json={"prompt": "a"})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "checkpoint_invalid")
            assert answer.json()["detail"] == "vae/config.json is missing"
            assert int(answer.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200


async def test_a_draining_server_refuses_with_503(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until(front.changes, lambda: front.is_ready)
        await front.drain()
        answer = await client.post(URL, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
        assert int(answer.headers["retry-after"]) > 0


async def test_what_the_engine_will_fail_again_says_so_to_the_client(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_the_job", model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "out_of_memory")
        assert answer.json()["error"]["type"] == "server_error"
        assert answer.headers["x-should-retry"] == "false"


async def test_a_job_that_kills_every_worker_is_a_500(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))
    async with running_front(tmp_path, "dies_in_a_job", model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "worker_crashed")
        assert answer.headers.get("x-should-retry") != "false"


async def test_a_worker_that_dies_with_the_job_costs_the_client_nothing_but_time(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with (
        running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        assert (await client.post(URL, json={"prompt": "a"})).status_code == 200


async def test_a_full_disk_is_a_507_that_says_when_to_ask_again(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until(front.changes, lambda: front.is_ready)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(front.store._database, "add", full)
        monkeypatch.setattr(front.store, "_probe", full)
        answer = await client.post(URL, json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
        assert int(answer.headers["retry-after"]) > 0
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "degraded")
        assert "no space" in ready.json()["storage"]["error"]


async def test_a_2_mb_body_is_a_413_in_our_form_over_the_wire(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        answer = await client.post(URL, content=json.dumps({"prompt": "x" * 2**21}).encode())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


async def test_every_answer_of_every_route_has_an_id(tmp_path: Path, checkpoint_dir: Path) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    transport = httpx.ASGITransport(create_app(front), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in ("/livez", "/readyz", "/v1/status", "/v1/models", "/openapi.json", "/nothing", URL):
            assert (await client.get(path)).headers["x-request-id"].startswith("req_"), path
