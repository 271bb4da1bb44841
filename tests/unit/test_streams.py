"""Answers that stream: OpenAI's pictures that develop, and the job API's events, each to be gone on from anywhere."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from safelight.jobs import JobStatus
from tests.unit.running_front import serving_instance
from tests.unit.stub_front import events, stub_server

pytestmark = pytest.mark.anyio

IMAGES, JOBS = "/v1/images/generations", "/v1/predictions"
BODY = {"prompt": "a red circle", "seed": 3, "steps": 8, "size": "64x64", "stream": True}


def _image(event: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(event["b64_json"], validate=True)))


async def test_pictures_develop_and_then_come_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        answer = await client.post(IMAGES, json=BODY | {"partial_images": 3, "output_format": "jpeg"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["x-seed"], "x-job-id" in answer.headers) == ("3", True)
        told = events(answer.text)
        assert [event["event"] for event in told] == ["image_generation.partial_image"] * 3 + [
            "image_generation.completed"
        ]
        assert all(set(event) == {"event", "data"} for event in told)  # an id or retry line breaks OpenAI's SDKs
        data = [json.loads(event["data"]) for event in told]
        assert [event["type"] for event in data] == [event["event"] for event in told]
        assert [event["partial_image_index"] for event in data[:3]] == [0, 1, 2]
        assert {(_image(event).format, _image(event).size) for event in data} == {("JPEG", (64, 64))}
        assert {event["size"] for event in data} == {"64x64"}
        assert data[3]["usage"]["output_tokens"] == 16


async def test_every_picture_of_several_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        told = events((await client.post(IMAGES, json=BODY | {"n": 2, "partial_images": 1})).text)
        data = [json.loads(event["data"]) for event in told]
        seen = [(event["type"].split(".")[1], event["image_index"], event.get("seed")) for event in data]
        assert seen == [
            ("partial_image", 0, None),
            ("partial_image", 1, None),
            ("completed", 0, 3),
            ("completed", 1, 4),
        ]


@pytest.mark.parametrize(
    ("body", "param"),
    [({"partial_images": 4}, "partial_images"), ({"partial_images": 1, "stream": False}, "partial_images")],
)
async def test_what_is_wrong_is_an_error_before_the_stream(
    body: dict[str, Any], param: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        answer = await client.post(IMAGES, json=BODY | body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_job_that_fails_ends_the_stream_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, faults="engine.decode=oom") as (_, client):
        (told,) = events((await client.post(IMAGES, json=BODY)).text)
        error = json.loads(told["data"])
        assert (told["event"], error["type"], error["error"]["code"]) == ("error", "error", "out_of_memory")


async def test_a_worker_that_dies_shows_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, step_s=0.03) as (front, client):
        request = asyncio.create_task(client.post(IMAGES, json=BODY | {"partial_images": 3}))
        while not (jobs := front.workers[0].jobs) or len(jobs[0].previews) < 2:
            await front.changes.wait()
        process = serving_instance(front)._process
        assert process is not None
        process.kill()
        data = [json.loads(event["data"]) for event in events((await request).text)]
        assert [event.get("partial_image_index") for event in data] == [0, 1, 2, None]
        assert data[-1]["type"] == "image_generation.completed"


async def test_a_client_that_leaves_its_stream_cancels_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, step_s=0.05) as (front, client):
        async with client.stream("POST", IMAGES, json=BODY | {"steps": 100, "partial_images": 3}) as answer:
            assert answer.status_code == 200
            while not (jobs := front.workers[0].jobs) or jobs[0].step < 2:
                await front.changes.wait()
        (running,) = jobs
        async with asyncio.timeout(5):
            while not running.status.is_terminal:
                await front.changes.wait()
        assert running.status is JobStatus.CANCELLED


# --- the job API --------------------------------------------------------------------------------------------------


async def _made(client: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    asked = {"prompt": "a red circle", "seed": 3, "steps": 8, "width": 64, "height": 64}
    answer = await client.post(JOBS, json={"input": asked | members})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_job_is_told_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        made = await _made(client, num_outputs=2)
        told = events((await client.get(made["urls"]["stream"])).text)
        assert [event["event"] for event in told] == ["logs"] * 16 + ["output"] * 2 + ["done"]
        assert told[7]["data"].startswith(" 50%|#####     | 8/16")
        assert [event["id"] for event in told] == [f"1-{number}" for number in range(1, 20)]
        for event in told[16:18]:
            assert (await client.get(event["data"])).headers["content-type"] == "image/png"


async def test_a_stream_goes_on_from_any_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        made = await _made(client)
        whole = events((await client.get(made["urls"]["stream"])).text)
        for count in range(len(whole)):
            last = whole[count]["id"]
            rest = events((await client.get(made["urls"]["stream"], headers={"last-event-id": last})).text)
            expected = [event["id"] for event in whole[count + 1 :]] or [whole[-1]["id"]]
            assert [event["id"] for event in rest] == expected
        named = events((await client.get(made["urls"]["stream"], params={"starting_after": "1-8"})).text)
        assert [event["event"] for event in named] == ["output", "done"]
        for wrong in ("x", "1", "1-2-3", "-1-2"):
            answer = await client.get(made["urls"]["stream"], headers={"last-event-id": wrong})
            assert answer.status_code == 400


async def test_a_cancelled_and_a_failed_job_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, step_s=0.05, faults="engine.decode=oom") as (_, client):
        failed, cancelled = await _made(client), await _made(client)
        await client.post(cancelled["urls"]["cancel"])
        *_, error, done = events((await client.get(failed["urls"]["stream"])).text)
        assert (error["event"], "does not fit" in error["data"]) == ("error", True)
        assert (done["event"], json.loads(done["data"])) == ("done", {"reason": "error"})
        (done,) = events((await client.get(cancelled["urls"]["stream"])).text)
        assert json.loads(done["data"]) == {"reason": "canceled"}


async def test_cogs_clients_ask_for_the_stream_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        asked = {"input": {"prompt": "a", "steps": 3, "width": 64, "height": 64}}
        answer = await client.post("/predictions", json=asked, headers={"accept": "text/event-stream"})
        told = events(answer.text)
        assert [event["event"] for event in told] == ["start", "log", "log", "log", "output", "completed"]
        assert json.loads(told[-1]["data"])["status"] == "succeeded"


async def test_previews_can_be_looked_at_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, step_s=0.05) as (_, client):
        made = await _made(client, partial_images=3, output_format="webp")
        shown = []
        async with client.stream("GET", made["urls"]["stream"], params={"previews": True}) as answer:
            name = ""
            async for line in answer.aiter_lines():
                name = line.removeprefix("event: ") if line.startswith("event: ") else name
                if name == "preview" and line.startswith("data: "):
                    shown.append(json.loads(line.removeprefix("data: ")))
                    picture = await client.get(shown[-1]["url"])
                    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/webp")
                    progress = (await client.get(made["urls"]["get"])).json()["progress"]
                    assert progress["preview_url"] == shown[-1]["url"]
        assert [(event["number"], event["step"]) for event in shown] == [(0, 2), (1, 4), (2, 6)]
        assert (await client.get(shown[-1]["url"])).status_code == 404
        assert (await client.get(made["urls"]["get"])).json()["progress"]["preview_url"] is None


@pytest.mark.parametrize(
    ("headers", "is_data"),
    [
        ({}, False),
        ({"user-agent": "replicate-python/1.0.7"}, True),
        ({"user-agent": "replicate-python/1.0.7", "x-output": "url"}, False),
        ({"x-output": "data"}, True),
    ],
)
async def test_pictures_come_as_addresses_or_inside_the_answer(
    headers: dict[str, str], is_data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        asked = {"input": {"prompt": "a", "steps": 2, "width": 64, "height": 64, "num_outputs": 2}}
        made = (await client.post(JOBS, json=asked, headers=headers | {"prefer": "wait"})).json()
        assert made["status"] == "succeeded" and len(made["output"]) == 2
        for number, output in enumerate(made["output"]):
            assert output.startswith("data:image/png;base64," if is_data else "http://")
            if is_data:
                data = base64.b64decode(output.partition(",")[2], validate=True)
                assert data == (await client.get(f"{made['urls']['get']}/output/{number}")).content
        assert (await client.get(JOBS, headers={"x-output": "?"})).status_code == 200
        assert (await client.get(made["urls"]["get"], headers={"x-output": "?"})).status_code == 400


# --- habits of servers and clients --------------------------------------------------------------------------------


async def test_the_rate_limit_is_told_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 pixels x 100 steps are 0.41 of one megapixel step."""
    async with stub_server(tmp_path, monkeypatch, step_s=0, rate_limit=1) as (_, client):
        body = BODY | {"steps": 100, "stream": False}
        first, second, third = [await client.post(IMAGES, json=body) for _ in range(3)]
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
        assert first.headers["ratelimit-policy"] == '"work";q=1;w=60'
        assert first.headers["ratelimit"].startswith('"work";r=0;t=')
        assert third.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(third.headers["retry-after"]) <= 60
        assert "ratelimit" in third.headers
        other = await client.post(IMAGES, json=body, headers={"x-key": "somebody else"})
        assert other.status_code == 200
        assert "ratelimit" not in (await client.get("/v1/status")).headers


@pytest.mark.parametrize(("aliases", "status", "listed"), [("accept", 200, 1), ("list", 200, 3), ("off", 404, 1)])
async def test_names_that_clients_hard_code(
    aliases: str, status: int, listed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stub_server(tmp_path, monkeypatch, model_aliases=aliases) as (_, client):
        for name in ("gpt-image-1", "dall-e-3", "chatgpt-image-latest"):
            answer = await client.post(IMAGES, json={"prompt": "a", "steps": 1, "model": name})
            assert answer.status_code == status
        assert len((await client.get("/v1/models")).json()["data"]) == listed


async def test_cogs_health_check_goes_with_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch, step_s=0.05) as (front, client):
        assert (await client.get("/health-check")).json() == {"status": "READY"}
        made = await _made(client, steps=100)
        while not front.workers[0].jobs:
            await front.changes.wait()
        assert (await client.get("/health-check")).json() == {"status": "BUSY"}
        await client.post(made["urls"]["cancel"])
        front.begin_drain()
        assert (await client.get("/health-check")).json() == {"status": "DEFUNCT"}
