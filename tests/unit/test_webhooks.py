"""Webhooks against a real receiver that checks signatures as its users do: delivered, repeated, kept over a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from safelight.errors import StorageUnavailable
from safelight.server import webhooks as webhooks_module
from tests.unit.running_front import TIMEOUT_S
from tests.unit.stub_front import stub_server

pytestmark = pytest.mark.anyio

INPUT = {"prompt": "a red circle", "steps": 4, "width": 64, "height": 64}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks_module, "_RETRY_S", (0.05, 0.05, 0.05))


class _Receiver:
    """Answers with the statuses it was given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self._statuses = list(statuses)
        self._arrived = asyncio.Event()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.received.append((headers, body))
        status = self._statuses.pop(0) if self._statuses else 200
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nlocation: /elsewhere\r\nconnection: close\r\n\r\n" % status
        )
        await writer.drain()
        writer.close()
        self._arrived.set()

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.received) < count:
                self._arrived.clear()
                await self._arrived.wait()


@contextlib.asynccontextmanager
async def _receiving(*statuses: int) -> AsyncIterator[_Receiver]:
    receiver = _Receiver(*statuses)
    server = await asyncio.start_server(receiver.handle, "127.0.0.1")
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=b"
    try:
        yield receiver
    finally:
        server.close()


async def _made(client: httpx.AsyncClient, url: str, *events: str, **members: Any) -> dict[str, Any]:
    body = {"input": INPUT | members, "webhook": url, "webhook_events_filter": list(events) or ["completed"]}
    answer = await client.post("/v1/predictions", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_the_end_of_a_job_is_told_once_and_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _receiving() as receiver, stub_server(tmp_path, monkeypatch, private_webhooks=True) as (_, client):
        made = await _made(client, receiver.url)
        await receiver.wait_for(1)
        headers, body = receiver.received[0]
        told = json.loads(body)
        assert (told["id"], told["status"]) == (made["id"], "succeeded")
        assert (await client.get(told["output"][0])).headers["content-type"] == "image/png"
        secret = (await client.get("/v1/webhooks/default/secret")).json()["key"]
        assert Webhook(secret).verify(body, headers) == told
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body.replace(b"succeeded", b"cancelled"), headers)
        other = (await client.get("/v1/webhooks/default/secret", headers={"x-key": "somebody else"})).json()["key"]
        with pytest.raises(WebhookVerificationError):
            Webhook(other).verify(body, headers)
        await asyncio.sleep(0.3)
        assert len(receiver.received) == 1
        assert headers["host"] == receiver.url.split("/")[2]


@pytest.mark.parametrize("status", [500, 404, 302, 301])
async def test_what_does_not_arrive_is_sent_again(status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the receiver points elsewhere: nothing is followed."""
    async with (
        _receiving(status, status) as receiver,
        stub_server(tmp_path, monkeypatch, private_webhooks=True) as (_, client),
    ):
        await _made(client, receiver.url)
        await receiver.wait_for(3)
        assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


async def test_after_the_last_try_and_when_told_so_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        _receiving(410) as gone,
        _receiving(*[500] * 9) as broken,
        stub_server(tmp_path, monkeypatch, private_webhooks=True) as (_, client),
    ):
        await _made(client, gone.url)
        await _made(client, broken.url)
        await broken.wait_for(4)
        await asyncio.sleep(0.3)
        assert (len(gone.received), len(broken.received)) == (1, 4)
        metrics = (await client.get("/metrics")).text
        assert 'safelight_webhooks_total{result="given_up"} 2.0' in metrics


async def test_start_and_progress_are_told_to_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        _receiving() as receiver,
        stub_server(tmp_path, monkeypatch, step_s=0.3, private_webhooks=True) as (_, client),
    ):
        await _made(client, receiver.url, "start", "logs", "completed")
        count = 1
        await receiver.wait_for(count)
        while json.loads(receiver.received[-1][1])["status"] != "succeeded":
            count += 1
            await receiver.wait_for(count)
        told = [json.loads(body) for _, body in receiver.received]
        assert told[0]["status"] == "processing" and told[0]["progress"]["step"] == 0
        steps = [prediction["progress"]["step"] for prediction in told]
        assert steps == sorted(steps) and len(steps) >= 4


async def test_a_cancelled_job_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        _receiving() as receiver,
        stub_server(tmp_path, monkeypatch, step_s=0.1, private_webhooks=True) as (_, client),
    ):
        made = await _made(client, receiver.url)
        await client.post(made["urls"]["cancel"])
        await receiver.wait_for(1)
        assert json.loads(receiver.received[0][1])["status"] == "canceled"


async def test_a_restart_loses_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was due and failed, and one of a job that ends only after the restart."""
    monkeypatch.setattr(webhooks_module, "_RETRY_S", (0.6, 0.6, 0.6))
    async with _receiving(500) as receiver, _receiving() as second:
        async with stub_server(tmp_path, monkeypatch, private_webhooks=True) as (_, client):
            await _made(client, receiver.url)
            await receiver.wait_for(1)
            await _made(client, second.url, steps=200)
        assert len(second.received) == 0
        async with stub_server(tmp_path, monkeypatch, private_webhooks=True):
            await receiver.wait_for(2)
            await second.wait_for(1)
        assert json.loads(second.received[0][1])["status"] == "succeeded"


async def test_a_disk_that_cannot_be_read_delays_them_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks_module, "_STORAGE_PAUSE_S", 0.05)
    async with _receiving() as receiver, stub_server(tmp_path, monkeypatch, private_webhooks=True) as (front, client):
        due_webhooks, failures = front.store.due_webhooks, [StorageUnavailable("locked")] * 3

        async def failing(time_s: float, count: int) -> Any:
            if failures:
                raise failures.pop()
            return await due_webhooks(time_s, count)

        monkeypatch.setattr(front.store, "due_webhooks", failing)
        await _made(client, receiver.url)
        await receiver.wait_for(1)
        assert not failures
        assert "Traceback" not in caplog.text


async def test_private_addresses_are_refused_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        answer = await client.post("/v1/predictions", json={"input": INPUT, "webhook": "http://127.0.0.1:1/"})
        assert (answer.status_code, "--private-webhooks" in answer.json()["detail"]) == (400, True)
        assert (await client.get("/v1/predictions")).json()["results"] == []
