"""Workers of next to no weight, for a front with more of them than the machine can hold: all live in this process.

For each worker the front starts ``hand_over.py``, a process of a megabyte, which passes its end of the socketpair to
this one. From there on the front sees what it always sees: the messages of ``safelight.protocol``, one device that
does one job after the other, step by step. Only encoding and the picture itself are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from safelight.protocol import (
    Cancel,
    Cancelled,
    Channel,
    Drawn,
    EncodedImage,
    FrontMessage,
    Generate,
    Load,
    LoadProgress,
    Message,
    Ready,
    Shutdown,
    StepDone,
    Succeeded,
)

_HAND_OVER = Path(__file__).with_name("hand_over.py")
_LOOK_S = 0.5
_WEIGHT_BYTES = 1_000_000


Sent = list[tuple[str, int, float]]
"""Job, step and time of the monotonic clock, of each step that was told."""


class LightWorker:
    """One device: its jobs wait for each other, and their steps take time by the clock only."""

    def __init__(self, channel: Channel[FrontMessage], step_s: float, picture: bytes, sent: Sent | None) -> None:
        self._channel = channel
        self._step_s = step_s
        self._picture = picture
        self._sent = sent
        self._cancelled: set[str] = set()
        self._device = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the front says so, or is gone."""
        while (message := await self._channel.receive()) is not None:
            match message:
                case Load():
                    self._channel.send(LoadProgress("warmup", None, 7, 7, _WEIGHT_BYTES, _WEIGHT_BYTES))
                    self._channel.send(Ready({"weights": 0.0, "warmup": 0.0}))
                case Generate():
                    task = asyncio.create_task(self._generate(message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                case Cancel(job_id):
                    self._cancelled.add(job_id)
                case Shutdown():
                    break
        for task in self._tasks:
            task.cancel()
        self._channel.close()

    async def _generate(self, generate: Generate) -> None:
        job_id, attempt, params = generate.job_id, generate.attempt, generate.params
        total_steps = params.total_steps
        async with self._device:
            due_s = time.monotonic()
            for step in range(1, total_steps + 1):
                due_s += self._step_s  # a late wake-up delays no step after it
                await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
                if job_id in self._cancelled:
                    self._cancelled.discard(job_id)
                    return self._channel.send(Cancelled(job_id, attempt))
                self._send(StepDone(job_id, attempt, step, total_steps))
            self._channel.send(Drawn(job_id, attempt))
        images = [
            EncodedImage(self._picture, params.output_format, seed, params.width, params.height)
            for seed in params.seeds
        ]
        seconds = {"generate": total_steps * self._step_s, "denoise": total_steps * self._step_s}
        self._channel.send(Succeeded(job_id, attempt, images, [], 1, seconds))

    def _send(self, message: Message) -> None:
        if self._sent is not None and isinstance(message, StepDone):
            self._sent.append((message.job_id, message.step, time.monotonic()))
        self._channel.send(message)


def command(address: Path) -> tuple[str, ...]:
    """What the front runs as a worker; ``address`` is the socket of the process that has the workers."""
    return (sys.executable, "-S", "-E", str(_HAND_OVER), str(address))


class _Host:
    """Takes sockets over, for as long as the process that handed one over lives."""

    def __init__(self, step_s: float, picture: bytes, sent: Sent | None) -> None:
        self._step_s = step_s
        self._picture = picture
        self._sent = sent
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, listener: socket.socket) -> None:
        """Somebody hands over; it sends at once, so this does not wait."""
        connection, _ = listener.accept()
        connection.setblocking(True)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
        if not descriptors:
            return connection.close()
        task = asyncio.get_running_loop().create_task(self._serve(connection, descriptors[0]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, descriptor: int) -> None:
        """Closing ``connection`` ends the process that handed it over, as the front expects of a worker."""
        with connection:
            channel: Channel[FrontMessage] = await Channel.open(socket.socket(fileno=descriptor), FrontMessage)
            await LightWorker(channel, self._step_s, self._picture, self._sent).run()


async def _host(args: argparse.Namespace) -> None:
    sent: Sent | None = [] if args.record else None
    host = _Host(args.step_s, os.urandom(args.picture_bytes), sent)
    loop, stopped, parent = asyncio.get_running_loop(), asyncio.Event(), os.getppid()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(args.address))
        listener.listen(1024)
        listener.setblocking(False)
        loop.add_reader(listener, host.accept, listener)
        print("hosting", flush=True)
        while os.getppid() == parent and not stopped.is_set():
            with_timeout = asyncio.create_task(stopped.wait())
            await asyncio.wait({with_timeout}, timeout=_LOOK_S)
            with_timeout.cancel()
    if args.record:
        args.record.write_text(json.dumps(sent))


def main(arguments: Sequence[str] | None = None) -> None:
    """Says ``hosting`` once workers may come; ends at SIGTERM, or with the process that started it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--address", type=Path, required=True, help="Unix socket to be made")
    parser.add_argument("--step-s", type=float, default=0.0, help="seconds of a step")
    parser.add_argument("--picture-bytes", type=int, default=100_000, help="size of a picture's file")
    parser.add_argument("--record", type=Path, help="file for when each step was told, as JSON")
    args = parser.parse_args(arguments)
    asyncio.run(_host(args))


if __name__ == "__main__":
    main()
