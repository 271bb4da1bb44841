"""An id for every request: the client's own if it is well-formed, else a new one."""

from __future__ import annotations

import re

import pytest
from starlette.types import Message, Receive, Scope, Send

from safelight.server.request_id import RequestId, request_id_of

pytestmark = pytest.mark.anyio


async def _ids(asked: bytes | None) -> tuple[str, str]:
    """The id that the app sees and the one that is sent back."""
    seen: list[str] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request_id_of(scope))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"of the app")]})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if asked is None else [(b"x-request-id", asked)]
    await RequestId(app)({"type": "http", "headers": headers}, receive, send)
    answered = [value for name, value in sent[0]["headers"] if name == b"x-request-id"]
    assert len(answered) == 1
    return seen[0], answered[0].decode()


@pytest.mark.parametrize("asked", [b"a", b"cli_0123", b"a.b-c_D", b"x" * 128])
async def test_a_clients_own_id_is_kept(asked: bytes) -> None:
    assert await _ids(asked) == (asked.decode(), asked.decode())


@pytest.mark.parametrize(
    "asked",
    [None, b"", b"a b", b"a\nb", b"a\n", b"x" * 129, "é".encode(), b"\xff", b"<script>", b"${jndi:x}", b"\x1b[31m"],
)
async def test_an_id_that_could_break_a_log_line_is_replaced(asked: bytes | None) -> None:
    seen, answered = await _ids(asked)
    assert seen == answered
    assert re.fullmatch(r"req_[0-9a-f]{32}", seen)


async def test_ids_are_new_each_time() -> None:
    assert await _ids(None) != await _ids(None)


async def test_other_scopes_pass_through() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def never() -> Message:
        raise AssertionError

    async def ignore(message: Message) -> None:
        pass

    await RequestId(app)({"type": "lifespan"}, never, ignore)
    assert seen == ["lifespan"]


def test_outside_of_a_request_the_id_is_unknown() -> None:
    assert request_id_of({}) == "unknown"
