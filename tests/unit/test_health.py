"""Probes and status in every state of the server, and the stream of all states between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.server import status_feed
from safelight.server.front import Front
from tests.unit.running_front import TIMEOUT_S, make_front, running_front, serving, submit, until, until_ready

pytestmark = pytest.mark.anyio

LIVE = ("/livez", "/health", "/ping", "/v2/health/live")
READY = ("/readyz", "/v2/health/ready")


async def _codes(client: httpx.AsyncClient) -> tuple[int, int, int]:
    live = {(await client.get(path)).status_code for path in LIVE}
    ready = {(await client.get(path)).status_code for path in READY}
    started = (await client.get("/startupz")).status_code
    assert len(live) == len(ready) == 1
    return live.pop(), ready.pop(), started


@pytest.mark.parametrize(
    ("behaviour", "state", "codes"),
    [
        ("never_finishes_loading", "loading", (200, 503, 503)),
        ("never_finishes_warmup", "warming", (200, 503, 503)),
        ("is_ready", "ready", (200, 200, 200)),
        ("fails_to_load", "failed", (200, 503, 503)),
    ],
)
async def test_the_probes_in_each_state(
    behaviour: str, state: str, codes: tuple[int, int, int], tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, behaviour, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until(front.changes, lambda: front.state == state)
        assert await _codes(client) == codes
        assert (await client.get("/livez")).json() == {"status": "alive"}
        ready = await client.get("/readyz")
        body, status = ready.json(), (await client.get("/v1/status")).json()
        assert body["status"] == status["status"] == state
        assert set(body) == set(status)
        assert ("retry-after" in ready.headers) is (ready.status_code == 503)


async def test_while_it_loads_the_body_says_how_far_it_is(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        await until(front.changes, lambda: front.workers[0].load.progress.bytes_done)
        worker = (await client.get("/readyz")).json()["workers"][0]
        assert (worker["state"], worker["phase"], worker["component"]) == ("loading", "weights", "transformer")
        assert (worker["components_done"], worker["components_total"]) == (5, 7)
        assert (worker["bytes_done"], worker["bytes_total"]) == (40, 80)
        assert worker["eta_s"] is not None


async def test_a_failed_load_names_the_file_in_the_readiness_body(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_to_load", model=str(checkpoint_dir)) as front, serving(front) as client:
        await until(front.changes, lambda: front.state == "failed")
        assert (await client.get("/readyz")).json()["workers"][0]["error"] == "vae/config.json is missing"


async def test_a_draining_server_is_alive_and_started_but_not_ready(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until_ready(front)
        front.begin_drain()
        assert await _codes(client) == (200, 503, 200)
        assert (await client.get("/readyz")).json()["status"] == "draining"


async def test_a_busy_worker_is_ready_and_shows_its_job(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        running = await submit(front)
        await submit(front)
        await until(front.changes, lambda: running.step == 1)
        assert (await client.get("/readyz")).status_code == 200
        status = (await client.get("/v1/status")).json()
        assert status["queue"] == {"waiting": 1, "running": 1, "limit": 64}
        assert status["workers"][0]["state"] == "busy"
        assert status["workers"][0]["job"] == {
            "id": running.id,
            "request_id": "req_1",
            "step": 1,
            "total_steps": 4,
            "workers": [0],
        }


# --- the stream ---------------------------------------------------------------------------------------------------


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    lines = answer.aiter_lines()
    async for line in lines:
        assert line == "event: status"
        data = await anext(lines)
        assert data.startswith("data: ")
        assert await anext(lines) == ""
        yield json.loads(data.removeprefix("data: "))


async def test_the_stream_tells_every_state_until_ready(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front, serving(front) as client:
        async with asyncio.timeout(TIMEOUT_S), client.stream("GET", "/v1/status/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            statuses = []
            async for event in _events(answer):
                statuses.append(event["status"])
                if event["status"] == "ready":
                    break
        assert statuses[0] in ("loading", "warming")


async def test_a_change_right_after_an_event_is_not_missed(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    in_pause, may_go_on = asyncio.Event(), asyncio.Event()

    async def pause(_seconds: float) -> None:
        in_pause.set()
        await may_go_on.wait()

    monkeypatch.setattr(status_feed, "asyncio", type("Clock", (), {"sleep": staticmethod(pause)}))
    events = front.status_feed.events()
    assert b'"status":"loading"' in await anext(events)
    front.changes.announce()
    following = asyncio.ensure_future(anext(events))
    await asyncio.wait_for(in_pause.wait(), TIMEOUT_S)
    front.begin_drain()  # while the stream is not waiting for changes
    may_go_on.set()
    assert b'"status":"draining"' in await asyncio.wait_for(following, TIMEOUT_S)


async def test_when_nothing_changes_the_stream_pings(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_feed, "_PING_S", 0.02)
    monkeypatch.setattr(status_feed, "_MIN_INTERVAL_S", 0.0)
    events = make_front(tmp_path, model=str(checkpoint_dir)).status_feed.events()
    await anext(events)
    assert [await asyncio.wait_for(anext(events), TIMEOUT_S) for _ in range(2)] == [b": ping\n"] * 2


async def test_many_changes_at_once_are_one_event(tmp_path: Path, checkpoint_dir: Path) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    events = front.status_feed.events()
    await anext(events)
    for _ in range(100):
        front.changes.announce()
    await asyncio.wait_for(anext(events), TIMEOUT_S)
    another = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait({another}, timeout=0.3)
    assert not done
    another.cancel()


async def test_the_stream_ends_when_the_server_stops(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until_ready(front)
        async with asyncio.timeout(TIMEOUT_S), client.stream("GET", "/v1/status/stream") as answer:
            events = _events(answer)
            assert (await anext(events))["status"] == "ready"
            stopping = asyncio.create_task(front.stop())
            assert [event["status"] async for event in events][-1] == "draining"
            await stopping


async def test_a_client_that_leaves_the_stream_leaves_nothing_behind(tmp_path: Path, checkpoint_dir: Path) -> None:
    front: Front
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await until_ready(front)
        tasks_before = len(asyncio.all_tasks())
        for _ in range(5):
            async with client.stream("GET", "/v1/status/stream") as answer:
                await anext(_events(answer))
        async with asyncio.timeout(TIMEOUT_S):
            while len(asyncio.all_tasks()) > tasks_before + 1:
                front.changes.announce()
                await asyncio.sleep(0.01)
