"""Many readers of server-sent events in one process: what reaches them, and when.

``python -m benchmarks.followers --port 8000 --count 5000 --path /v1/status/stream --mark JOB --mark '"step":'``: the
number behind the marks, one after the other, is the step that an event tells of. Says ``following`` once every reader
has the head of its answer, and writes ``--output`` when its input ends. Times are of the monotonic clock, which all
processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safelight.server.connections import raise_file_limit

_AT_ONCE = 50
_HEAD_END = b"\r\n\r\n"
_EVENT_END = b"\n\n"
_DIGITS = re.compile(rb"[0-9]{1,9}")


class Follower(asyncio.Protocol):
    """One connection. ``seen`` gets the time at which each step was first told here."""

    def __init__(self, request: bytes, marks: Sequence[bytes], seen: dict[int, array[float]]) -> None:
        self._request = request
        self._marks = marks
        self._seen = seen
        self._tail = b""
        self._step = 0
        self.events = 0
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        self._tail += data
        if not self.begun.done():
            head, end, self._tail = self._tail.partition(_HEAD_END)
            if not end:
                self._tail = head
                return
            self.begun.set_result(None)
        *events, self._tail = self._tail.split(_EVENT_END)
        self.events += len(events)
        for event in events:
            step = self._step_of(event)
            if step > self._step:
                self._step = step
                self._seen[step].append(now_s)

    def _step_of(self, event: bytes) -> int:
        for mark in self._marks:
            _, _, event = event.partition(mark)
        digits = _DIGITS.match(event)
        return int(digits[0]) if digits else 0

    def connection_lost(self, error: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_exception(error or ConnectionResetError("closed before its answer began"))


async def _follow(args: argparse.Namespace) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    seen: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
    request = f"GET {args.path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    marks = [mark.encode() for mark in args.mark]
    followers: list[Follower] = []
    for start in range(0, args.count, _AT_ONCE):
        new = [Follower(request, marks, seen) for _ in range(min(_AT_ONCE, args.count - start))]
        for follower in new:
            await loop.create_connection(lambda made=follower: made, "127.0.0.1", args.port)  # type: ignore[misc]
        await asyncio.gather(*(follower.begun for follower in new))
        followers += new
    counted = sum(follower.events for follower in followers)
    cpu_s, start_s = time.process_time(), time.monotonic()
    print("following", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    seconds = time.monotonic() - start_s
    return {
        "events": sum(follower.events for follower in followers) - counted,
        "client_cpu_share": round((time.process_time() - cpu_s) / seconds, 3),
        "seen": {str(step): list(times) for step, times in seen.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the readers' process."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--mark", action="append", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    raise_file_limit()
    args.output.write_text(json.dumps(asyncio.run(_follow(args))))


if __name__ == "__main__":
    main()
