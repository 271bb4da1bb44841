"""The bound on request bodies, byte by byte."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from safelight.server.body_limit import BodyLimit

pytestmark = pytest.mark.anyio


async def _read(chunks: list[bytes], headers: list[tuple[bytes, bytes]], limit_bytes: int = 10) -> tuple[bytes, int]:
    """What an app reads behind the limit, and how many messages it took."""
    body = b""
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        more = received < len(chunks)
        return {"type": "http.request", "body": chunks[received - 1] if chunks else b"", "more_body": more}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal body
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                return

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    try:
        await BodyLimit(app, lambda _path: limit_bytes)(
            {"type": "http", "path": "/", "headers": headers}, receive, send
        )
    except HTTPException as error:
        assert error.status_code == 413
        return b"413", received
    return body, received


@pytest.mark.parametrize("chunks", [[b""], [b"x" * 10], [b"x" * 5] * 2, [b"x"] * 10])
async def test_up_to_the_limit_everything_passes(chunks: list[bytes]) -> None:
    assert await _read(chunks, []) == (b"".join(chunks), len(chunks))


@pytest.mark.parametrize(("chunks", "messages"), [([b"x" * 11], 1), ([b"x" * 5] * 9, 3), ([b"x"] * 100, 11)])
async def test_one_byte_more_ends_it_without_reading_on(chunks: list[bytes], messages: int) -> None:
    assert await _read(chunks, []) == (b"413", messages)


@pytest.mark.parametrize("length", [b"11", b"99999999999999999999999999999999"])
async def test_an_announced_length_above_the_limit_ends_it_before_a_byte_is_read(length: bytes) -> None:
    assert await _read([b"x"], [(b"content-length", length)]) == (b"413", 0)


@pytest.mark.parametrize("length", [b"1", b"", b"-1", b"ten", b"1e9", "²".encode("latin-1")])
async def test_a_lying_length_does_not_lift_the_limit(length: bytes) -> None:
    assert await _read([b"x" * 11], [(b"content-length", length)]) == (b"413", 1)


async def test_other_scopes_pass_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def never() -> Message:
        raise AssertionError

    async def ignore(message: Message) -> None:
        pass

    await BodyLimit(app, lambda _path: 10)({"type": "lifespan"}, never, ignore)
    assert seen == ["lifespan"]
