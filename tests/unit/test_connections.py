"""Late, slow, half-closed and too many clients, over real sockets to a real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, h11_impl

from safelight.server import connections
from safelight.server.connections import ConnectionGuard, ConnectionLimits, raise_file_limit
from safelight.server.listener import bind
from safelight.server.metrics import Metrics

pytestmark = [pytest.mark.anyio, pytest.mark.timed]

TIMEOUT_S = 10.0
LIMITS = ConnectionLimits(max_connections=1000, head_timeout_s=0.4, body_timeout_s=0.4, write_timeout_s=0.4)
REQUEST = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
BIG = 16 * 1024 * 1024
"""More than the kernel's buffers hold."""

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class App:
    """Answers ``/now``; ``/wait`` once ``may_answer`` is set or the client left; ``/body`` after the body; ``/big``."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.waiting = 0
        self.disconnected = 0
        self.written_bytes = 0
        self.body = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        match scope["path"]:
            case "/wait":
                if not await self._wait(receive):
                    return
            case "/body":
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        self.disconnected += 1
                        return
                    if not message["more_body"]:
                        break
            case "/big":
                return await self._send_big(send)
            case "/whole":
                return await self._send_whole(send)
            case "/late":
                await self.may_answer.wait()
                self.body = (await receive())["body"]
            case "/endless":
                return await self._send_without_end(send)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _wait(self, receive: Any) -> bool:
        await receive()
        self.waiting += 1
        gone, answer = asyncio.ensure_future(receive()), asyncio.ensure_future(self.may_answer.wait())
        await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        self.waiting -= 1
        self.disconnected += gone.done()
        for task in (gone, answer):
            task.cancel()
        return answer.done()

    async def _send_big(self, send: Any) -> None:
        headers = [(b"content-length", str(BIG).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = bytes(64 * 1024)
        for number in range(BIG // len(piece)):
            last = (number + 1) * len(piece) == BIG
            await send({"type": "http.response.body", "body": piece, "more_body": not last})
            self.written_bytes += len(piece)

    async def _send_whole(self, send: Any) -> None:
        headers = [(b"content-length", str(BIG).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(BIG)})

    async def _send_without_end(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not self.may_answer.is_set():
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
            await asyncio.sleep(0.02)
        await send({"type": "http.response.body", "body": b"end"})


class Served:
    def __init__(self, limits: ConnectionLimits) -> None:
        self.app = App()
        self.metrics = Metrics(dict)
        self.guard = ConnectionGuard(limits, self.metrics)
        self.sock = bind("127.0.0.1", 0)
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, sent: bytes = b"") -> Client:
        reader, writer = await asyncio.open_connection(*self.sock.getsockname())
        self._writers.append(writer)
        writer.write(sent)
        await writer.drain()
        return reader, writer

    async def close_clients(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def closed(self, reason: str) -> float:
        return float(self.metrics.connections_closed.labels(reason)._value.get())


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


@contextlib.asynccontextmanager
async def serving(limits: ConnectionLimits = LIMITS) -> AsyncIterator[Served]:
    served = Served(limits)
    config = uvicorn.Config(
        served.app,
        http=served.guard.protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=1,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    tasks = [asyncio.create_task(server.serve(sockets=[served.sock])), asyncio.create_task(served.guard.sweep())]
    try:
        yield served
    finally:
        served.app.may_answer.set()
        await served.close_clients()
        server.should_exit = True
        await asyncio.wait_for(tasks[0], TIMEOUT_S)
        tasks[1].cancel()


@pytest.fixture(autouse=True)
def _fast_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_SWEEP_EVERY_S", 0.05)


async def _rest(client: Client) -> bytes:
    """Everything until the server closes."""
    try:
        return await asyncio.wait_for(client[0].read(), TIMEOUT_S)
    except ConnectionResetError:
        return b"reset"


async def _until(condition: Any) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 (the server announces nothing)
            await asyncio.sleep(0.01)


# --- deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "reason", "answer"),
    [
        (b"", "head", b""),
        (b"GET /now HT", "head", b"408"),
        (b"GET /now HTTP/1.1\r\nhost: a\r\n", "head", b"408"),
        (b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n", "body", b"408"),
        (b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf", "body", b"408"),
        (b"POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n", "body", b"408"),
    ],
)
async def test_half_a_request_is_closed_at_its_deadline(sent: bytes, reason: str, answer: bytes) -> None:
    async with serving() as served:
        start_s = time.monotonic()
        rest = await _rest(await served.connect(sent))
        assert 0.3 < time.monotonic() - start_s < 2
        assert rest.split(b" ")[1:2] == [answer] if answer else rest == b""
        assert served.closed(reason) == 1
        await _until(lambda: served.guard.count == 0)
        assert served.app.disconnected == (reason == "body")


@pytest.mark.parametrize("head", [b"", b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n"])
async def test_trickling_does_not_extend_the_deadline(head: bytes) -> None:
    async with serving() as served:
        client = await served.connect(head)
        start_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while not client[0].at_eof() and time.monotonic() - start_s < TIMEOUT_S:
                client[1].write(b"G")
                await client[1].drain()
                await asyncio.wait({asyncio.ensure_future(asyncio.sleep(0.05))})
                if served.guard.count == 0:
                    break
        assert time.monotonic() - start_s < 2


async def test_a_body_in_pieces_within_the_deadline_is_served() -> None:
    async with serving() as served:
        client = await served.connect(
            b"POST /body HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab"
        )
        await asyncio.sleep(0.2)
        client[1].write(b"cd")
        assert (await _rest(client)).endswith(b"ok")


async def test_a_request_that_is_answered_late_is_not_the_clients_fault() -> None:
    async with serving() as served:
        client = await served.connect(REQUEST % b"wait")
        await asyncio.sleep(1.0)
        served.app.may_answer.set()
        assert (await client[0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        client[1].close()


async def test_a_client_that_was_told_to_wait_with_its_body_is_not_late() -> None:
    async with serving() as served:
        head = b"POST /late HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        client = await served.connect(head)
        await asyncio.sleep(1.0)
        served.app.may_answer.set()
        await client[0].readuntil(b"100 Continue\r\n\r\n")
        client[1].write(b"abcd")
        await client[0].readuntil(b"ok")
        assert served.app.body == b"abcd"


async def test_a_body_that_we_do_not_read_is_not_late() -> None:
    async with serving() as served:
        client = await served.connect(
            b"POST /late HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n" + bytes(200_000)
        )
        await asyncio.sleep(1.0)
        assert served.guard.count == 1
        served.app.may_answer.set()
        await client[0].readuntil(b"ok")


@pytest.mark.parametrize("piece", [b"G", b""])
async def test_a_body_that_nobody_waits_for_any_more_has_its_deadline(piece: bytes) -> None:
    async with serving() as served:
        client = await served.connect(b"POST /now HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n")
        await client[0].readuntil(b"ok")
        start_s = time.monotonic()
        while served.guard.count and time.monotonic() - start_s < 2:
            client[1].write(piece)
            await asyncio.sleep(0.05)
        assert served.guard.count == 0


async def test_a_connection_is_idle_after_a_body_that_came_too_late() -> None:
    async with serving() as served:
        client = await served.connect(b"POST /now HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n")
        await client[0].readuntil(b"ok")
        client[1].write(b"abc")
        assert await asyncio.wait_for(_rest(client), 2) == b""


async def test_an_answer_that_began_before_a_late_body_is_cut() -> None:
    async with serving() as served:
        client = await served.connect(b"POST /endless HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n")
        assert (await asyncio.wait_for(_rest(client), 2)).startswith(b"HTTP/1.1 200")
        assert served.closed("body") == 1


async def test_a_second_request_on_a_kept_connection_has_a_deadline_of_its_own() -> None:
    async with serving() as served:
        client = await served.connect(REQUEST % b"now")
        await client[0].readuntil(b"ok")
        await asyncio.sleep(0.6)
        client[1].write(REQUEST % b"now")
        await client[0].readuntil(b"ok")
        client[1].write(b"GET /n")
        assert b" 408 " in await _rest(client)


async def test_two_hundred_half_open_connections_go_while_a_good_client_is_served() -> None:
    async with serving() as served:
        bad = [await served.connect(b"GET /" if number % 2 else b"") for number in range(200)]
        good = await served.connect()
        worst_s = 0.0
        while served.guard.count > 1:
            start_s = time.monotonic()
            good[1].write(REQUEST % b"now")
            await good[0].readuntil(b"ok")
            worst_s = max(worst_s, time.monotonic() - start_s)
        assert worst_s < 0.5
        assert served.closed("head") == 200
        for client in [*bad, good]:
            client[1].close()


# --- slow readers -------------------------------------------------------------------------------------------------


async def test_a_client_that_reads_nothing_is_cut_off_and_cost_little_memory() -> None:
    async with serving() as served:
        with socket.create_connection(served.sock.getsockname()) as client:
            client.sendall(REQUEST % b"big")
            await asyncio.sleep(0.2)
            assert 0 < served.app.written_bytes < 1024 * 1024
            await _until(lambda: served.closed("write") == 1)
            await _until(lambda: served.guard.count == 0)


@pytest.mark.parametrize("path", [b"big", b"whole"])
async def test_a_client_that_reads_steadily_gets_all_of_it(path: bytes) -> None:
    async with serving() as served:
        reader, writer = await served.connect(REQUEST % path)
        received = len(await reader.readuntil(b"\r\n\r\n")) * 0
        while received < BIG:
            received += len(await asyncio.wait_for(reader.read(1024 * 1024), TIMEOUT_S))
            await asyncio.sleep(0.01)
        assert served.closed("write") == 0
        writer.close()


@pytest.mark.parametrize("path", [b"big", b"whole"])
async def test_a_client_that_reads_little_but_steadily_is_not_cut_off(path: bytes) -> None:
    async with serving() as served:
        with socket.create_connection(served.sock.getsockname()) as client:
            client.sendall(REQUEST % path)
            client.setblocking(False)
            for _ in range(30):
                await asyncio.sleep(0.05)
                with contextlib.suppress(BlockingIOError):
                    client.recv(32 * 1024)
            assert (served.closed("write"), served.guard.count) == (0, 1)


# --- limits -------------------------------------------------------------------------------------------------------


async def test_one_connection_more_than_the_limit_is_refused_until_one_goes() -> None:
    async with serving(ConnectionLimits(16, 5, 5, 5)) as served:
        clients = [await served.connect() for _ in range(16)]
        await _until(lambda: served.guard.count == 16)
        refused = await _rest(await served.connect())
        assert refused.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in refused
        assert served.closed("limit") == 1
        clients[0][1].close()
        await _until(lambda: served.guard.count == 15)
        client = await served.connect(REQUEST % b"now")
        await client[0].readuntil(b"ok")
        for left in [*clients, client]:
            left[1].close()


def test_the_file_limit_is_raised_and_bounds_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    assert raise_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(connections, "raise_file_limit", lambda: 100)
    assert ConnectionGuard(LIMITS, Metrics(dict))._max_connections == 36


def test_a_file_limit_without_bound_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert raise_file_limit() > 1_000_000

    def refuse(*_: Any) -> None:
        raise ValueError("macOS knows no infinity here")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_file_limit() == 256


# --- half-closed --------------------------------------------------------------------------------------------------


async def test_a_client_that_half_closes_gets_its_whole_answer() -> None:
    async with serving() as served:
        client = await served.connect(REQUEST % b"wait")
        client[1].write_eof()
        await asyncio.sleep(0.5)
        assert (served.app.waiting, served.app.disconnected) == (1, 0)
        served.app.may_answer.set()
        answer = await _rest(client)
        while answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer and answer.endswith(b"ok")
        client[1].close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close and then close"])
async def test_a_client_that_leaves_is_noticed_at_once(how: str) -> None:
    async with serving() as served:
        _, writer = await served.connect(REQUEST % b"wait")
        await _until(lambda: served.app.waiting == 1)
        if how == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how.startswith("half"):
            writer.write_eof()
            await asyncio.sleep(0.3)
            assert served.app.disconnected == 0
        start_s = time.monotonic()
        writer.close()
        await _until(lambda: served.app.disconnected == 1)
        assert time.monotonic() - start_s < (1.5 if how.startswith("half") else 0.5)
        await _until(lambda: served.guard.count == 0)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /now HT", b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf"]
)
async def test_the_end_before_the_whole_request_closes_the_connection(sent: bytes) -> None:
    async with serving(ConnectionLimits(1000, 5, 5, 5)) as served:
        client = await served.connect(sent)
        client[1].write_eof()
        start_s = time.monotonic()
        await _rest(client)
        assert time.monotonic() - start_s < 0.5


# --- drain --------------------------------------------------------------------------------------------------------


async def test_a_drain_closes_what_is_idle_or_half_and_lets_a_running_request_end() -> None:
    async with serving(ConnectionLimits(1000, 60, 60, 60)) as served:
        idle = await served.connect(REQUEST % b"now")
        await idle[0].readuntil(b"ok")
        half = [await served.connect(sent) for sent in (b"", b"GET /", b"POST /body HTTP/1.1\r\ncontent-length: 9\r\n")]
        running = await served.connect(REQUEST % b"wait")
        await _until(lambda: served.app.waiting == 1)
        served.guard.begin_drain()
        for client in [idle, *half]:
            assert await _rest(client) == b""
        assert served.guard.count == 1
        late = await _rest(await served.connect(REQUEST % b"now"))
        assert late.endswith(b"ok") and b"connection: close" in late
        served.app.may_answer.set()
        answer = await _rest(running)
        assert answer.endswith(b"ok") and b"connection: close" in answer


async def test_a_drain_does_not_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_DRAIN_STALL_S", 0.2)
    async with serving(ConnectionLimits(1000, 60, 60, 60)) as served:
        with socket.create_connection(served.sock.getsockname()) as client:
            client.sendall(REQUEST % b"big")
            await _until(lambda: served.app.written_bytes > 0)
            served.guard.begin_drain()
            await _until(lambda: served.guard.count == 0)


async def test_a_drain_closes_the_connection_of_an_answer_that_had_begun() -> None:
    async with serving(ConnectionLimits(1000, 60, 60, 60)) as served:
        client = await served.connect(REQUEST % b"endless")
        await client[0].readuntil(b"event")
        served.guard.begin_drain()
        await client[0].readuntil(b"event")
        served.app.may_answer.set()
        assert (await asyncio.wait_for(_rest(client), 0.5)).endswith(b"end\r\n0\r\n\r\n")


# --- uvicorn ------------------------------------------------------------------------------------------------------


def test_uvicorn_still_has_what_the_protocol_relies_on() -> None:
    protocol = inspect.getsource(h11_impl.H11Protocol)
    cycle = inspect.getsource(h11_impl.RequestResponseCycle)
    assert protocol.count("self.cycle = RequestResponseCycle(") == 1
    assert "self.cycle = RequestResponseCycle(" in inspect.getsource(h11_impl.H11Protocol.handle_events)
    for name in (
        "more_body",
        "response_started",
        "response_complete",
        "keep_alive",
        "default_headers",
        "waiting_for_100_continue",
    ):
        assert f"self.{name}" in cycle, name
    assert "self.read_paused" in inspect.getsource(flow_control)
    for name in ("timeout_keep_alive", "conn", "flow", "transport"):
        assert f"self.{name}" in protocol, name
