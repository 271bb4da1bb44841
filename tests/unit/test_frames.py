"""Frames of every size, in every cut, and a sender that is held back."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

import pytest

from safelight import frames
from safelight.frames import FrameSocket

pytestmark = pytest.mark.anyio

SIZES = [0, 1, 4, 65_531, 65_532, 65_533, 65_536, 65_537, 200_000, 3_000_000]


async def _pair() -> tuple[FrameSocket, FrameSocket]:
    one, other = socket.socketpair()
    return await FrameSocket.open(one), await FrameSocket.open(other)


async def _received(end: FrameSocket, count: int) -> list[bytes]:
    bodies = []
    for _ in range(count):
        body = await asyncio.wait_for(end.receive(), 20)
        assert body is not None
        bodies.append(bytes(body))
    return bodies


@pytest.mark.parametrize("after", [[], [7], [70_000]], ids=["alone", "before a small one", "before a large one"])
@pytest.mark.parametrize("size", SIZES)
async def test_a_frame_of_any_size_arrives_whole(size: int, after: list[int]) -> None:
    one, other = await _pair()
    bodies = [random.Random(each).randbytes(each) for each in (3, size, *after)]
    for body in bodies:
        one.send(body)
    assert await _received(other, len(bodies)) == bodies
    one.close()
    other.close()


async def test_frames_may_be_cut_anywhere() -> None:
    ours, theirs = socket.socketpair()
    end = await FrameSocket.open(ours)
    rng = random.Random(1)
    bodies = [rng.randbytes(rng.choice([0, 3, 50, 65_000, 90_000])) for _ in range(60)]
    stream = b"".join(struct.pack(">I", len(body)) + body for body in bodies)

    async def send() -> None:
        sent = 0
        while sent < len(stream):
            step = rng.choice([1, 3, 4, 5, 1000, 65_536, 100_000])
            await asyncio.get_running_loop().sock_sendall(theirs, stream[sent : sent + step])
            sent += step

    with theirs:
        theirs.setblocking(False)
        sending = asyncio.create_task(send())
        assert await _received(end, len(bodies)) == bodies
        await sending
    end.close()


async def test_a_sender_waits_for_a_reader_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_SOCKET_BYTES", 100_000)
    one, other = await _pair()
    for _ in range(40):
        one.send(bytes(500_000))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.flush(), 0.3)
    assert len(await _received(other, 40)) == 40
    await asyncio.wait_for(one.flush(), 5)
    one.close()
    other.close()


async def test_what_came_before_the_end_is_received() -> None:
    one, other = await _pair()
    one.send(b"a")
    one.send(bytes(100_000))
    await one.flush()
    one.close()
    assert [len(body) for body in await _received(other, 2)] == [1, 100_000]
    assert await other.receive() is None
    other.close()


async def test_frames_before_one_that_is_too_large_are_received() -> None:
    ours, theirs = socket.socketpair()
    end = await FrameSocket.open(ours)
    with theirs:
        theirs.sendall(struct.pack(">I", 2) + b"ab" + struct.pack(">I", frames.MAX_FRAME_BYTES + 1))
        assert await _received(end, 1) == [b"ab"]
        with pytest.raises(frames.FrameTooLarge):
            await asyncio.wait_for(end.receive(), 5)
    end.close()
