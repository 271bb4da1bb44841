"""Framing and messages: what one side sends the other reads, and nothing a peer sends can hurt."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

import msgspec
import pytest

from safelight import frames
from safelight.errors import ProtocolError
from safelight.params import ImageFormat
from safelight.protocol import (
    Cancel,
    Cancelled,
    Channel,
    Drawn,
    EncodedImage,
    Failed,
    FrontMessage,
    Generate,
    Load,
    LoadFailed,
    LoadProgress,
    Memory,
    Message,
    Ready,
    Shutdown,
    StepDone,
    Succeeded,
    Warm,
    WorkerMessage,
)
from tests.unit.running_front import params

pytestmark = pytest.mark.anyio

FRONT_MESSAGES = [
    Load("a/model", "cuda:0", "auto", [(64, 64), (128, 64)], "fp8", "low", 2, 8, "/data/compile-cache"),
    Generate("job_1", 2, params(prompt="שלום", guidance_scale=3.5)),
    Cancel("job_1"),
    Shutdown(),
]
WORKER_MESSAGES = [
    LoadProgress("weights", None, 1, 7, 2**40, 2**41),
    Ready({"import": 1.5}, 8192),
    Warm(1024, 768, 4),
    Memory(2**34, 2**36),
    LoadFailed("checkpoint_invalid", "a sentence"),
    StepDone("job_1", 1, 3, 4),
    Drawn("job_1", 1),
    Succeeded("job_1", 1, [EncodedImage(b"\x00\xff" * 1000, ImageFormat.PNG, 7, 64, 64)], ["w"], 3, {"vae": 0.1}),
    Failed("job_1", 1, "out_of_memory", "a sentence"),
    Cancelled("job_1", 1),
]


async def _raw_peer(received: object = WorkerMessage) -> tuple[Channel[Message], socket.socket]:
    ours, theirs = socket.socketpair()
    return await Channel.open(ours, received), theirs


@pytest.mark.parametrize(
    ("union", "message"),
    [(FrontMessage, message) for message in FRONT_MESSAGES] + [(WorkerMessage, message) for message in WORKER_MESSAGES],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)
async def test_a_message_arrives_as_it_was_sent(union: object, message: Message) -> None:
    one, other = socket.socketpair()
    sender: Channel[Message] = await Channel.open(one, union)
    receiver: Channel[Message] = await Channel.open(other, union)
    sender.send(message)
    assert await receiver.receive() == message
    sender.close()
    receiver.close()


async def test_messages_keep_their_order() -> None:
    channel, peer = await _raw_peer()
    with peer:
        body = b"".join(_frame(msgspec.msgpack.encode(StepDone("job_1", 1, step, 9))) for step in range(9))
        peer.sendall(body)
        steps = [await channel.receive() for _ in range(9)]
        assert steps == [StepDone("job_1", 1, step, 9) for step in range(9)]
    channel.close()


async def test_a_frame_may_arrive_byte_by_byte() -> None:
    channel, peer = await _raw_peer()
    with peer:
        receiving = asyncio.create_task(channel.receive())
        for byte in _frame(msgspec.msgpack.encode(Cancelled("job_1", 1))):
            peer.sendall(bytes([byte]))
            await asyncio.sleep(0)
        assert await receiving == Cancelled("job_1", 1)
    channel.close()


@pytest.mark.parametrize("part", [b"", b"\x00", b"\x00\x00\x00\x10", b"\x00\x00\x00\x10abc"], ids=repr)
async def test_a_peer_that_ends_anywhere_in_a_frame_is_gone(part: bytes) -> None:
    channel, peer = await _raw_peer()
    peer.sendall(part)
    peer.close()
    assert await channel.receive() is None
    channel.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xc0",
        msgspec.msgpack.encode({"type": "nonsense"}),
        msgspec.msgpack.encode({"job_id": "no type"}),
        msgspec.msgpack.encode({"type": "stepdone", "job_id": "a", "attempt": "1", "step": 1, "total_steps": 1}),
        msgspec.msgpack.encode(Ready({"import": 1.0}))[:-1],
        msgspec.msgpack.encode(Load("m", "cpu", "auto", [])),
        b"\x82\xa4type\xa9cancelled\xa6job_id\xa2\xff\xff",
        b"\x82\xa4type\xa9cancelled\xa1x" + b"\x91" * 100_000,
    ],
    ids=lambda body: repr(body)[:30],
)
async def test_a_bad_frame_is_a_protocol_error(body: bytes) -> None:
    channel, peer = await _raw_peer()
    with peer:
        peer.sendall(_frame(body))
        with pytest.raises(ProtocolError):
            await channel.receive()
    channel.close()


async def test_random_bytes_are_a_protocol_error_and_nothing_else() -> None:
    rng = random.Random(0)
    channel, peer = await _raw_peer()
    with peer:
        for _ in range(300):
            peer.sendall(_frame(rng.randbytes(rng.randrange(64))))
            with pytest.raises(ProtocolError):
                await channel.receive()
    channel.close()


async def test_a_huge_announced_length_is_refused_before_a_byte_of_it_is_read() -> None:
    channel, peer = await _raw_peer()
    with peer:
        peer.sendall(struct.pack(">I", frames.MAX_FRAME_BYTES + 1))
        with pytest.raises(ProtocolError, match="536870913 bytes"):
            await asyncio.wait_for(channel.receive(), 5)
    channel.close()


async def test_a_message_too_large_to_send_is_a_protocol_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    channel, peer = await _raw_peer()
    with peer, pytest.raises(ProtocolError, match="a LoadFailed message is too large: it has 1"):
        channel.send(LoadFailed("code", "x" * 100))
    channel.close()


async def test_sending_to_a_closed_peer_does_not_raise() -> None:
    channel, peer = await _raw_peer()
    peer.close()
    for _ in range(3):
        channel.send(Shutdown())
        await channel.flush()
    assert await channel.receive() is None
    channel.close()
    channel.close()


def test_the_tag_of_a_message_is_its_name_in_lower_case() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(StepDone("j", 1, 2, 3)))["type"] == "stepdone"


def _frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body
