"""A probe in a process of its own: ``GET /livez`` every few milliseconds over one keep-alive connection.

Only the standard library and one blocking socket, so that it takes as little as possible of the cores it shares with
the server. It runs until SIGTERM, then writes a ``Recording`` as JSON.

Every tick of the schedule is one sample, whether the server was quick or not: a tick that passes while the probe still
waits for an answer is not sent later in a burst, but recorded as answered by that answer. Latency counts from the
time at which a tick was due, so a stall of a second is two hundred samples and not a single one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import time
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Recording:
    """Three times per tick, in seconds since the epoch, and what the probe itself cost.

    ``sent_s`` of a tick that passed during a wait is the time at which the request that was under way was sent.
    ``refused`` counts attempts before the first answer, ``lost`` connections and answers other than 200 after it.
    """

    due_s: list[float]
    sent_s: list[float]
    answered_s: list[float]
    late_s: list[float]
    refused: int
    lost: int
    cpu_s: float
    wall_s: float


class _Stopped(BaseException):
    """SIGTERM came; raised where the probe sleeps or waits."""


class Hammer:
    """``run`` ends when ``_Stopped`` is raised into it, or when the process that started it is gone."""

    def __init__(self, port: int, interval_s: float) -> None:
        self._address = ("127.0.0.1", port)
        self._request = f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._interval_s = interval_s
        self._connection: socket.socket | None = None
        self._due, self._sent, self._answered, self._late = (array("d") for _ in range(4))
        self._refused = 0
        self._lost = 0
        self._started = time.perf_counter()

    def run(self) -> None:
        """Sends on schedule; a request that finds no server stays due until one answers."""
        due = free = time.perf_counter()
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(max(due - time.perf_counter(), 0.0))
            sent = time.perf_counter()
            try:
                self._ask()
            except (OSError, ValueError):
                due = self._give_up(due)
                continue
            answered = time.perf_counter()
            self._late.append(sent - max(due, free))
            free = answered
            while due <= answered:
                self._due.append(due)
                self._sent.append(sent)
                self._answered.append(answered)
                due += self._interval_s

    def _give_up(self, due: float) -> float:
        """Closes the connection; when the same tick is due: from the first answer on, it keeps its time."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if not self._answered:
            self._refused += 1
            return time.perf_counter() + self._interval_s
        self._lost += 1
        time.sleep(self._interval_s)
        return due

    def _ask(self) -> None:
        """One request and its whole answer. Raises ``OSError``, or ``ValueError`` for another answer than 200."""
        if self._connection is None:
            self._connection = socket.create_connection(self._address, timeout=_TIMEOUT_S)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection.sendall(self._request)
        head, _, body = self._receive(lambda data: b"\r\n\r\n" in data).partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            missing = length - len(body)
            self._receive(lambda data: len(data) >= missing)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError("the answer is not 200")

    def _receive(self, is_complete: Callable[[bytes], bool]) -> bytes:
        assert self._connection is not None
        data = b""
        while not is_complete(data):
            part = self._connection.recv(4096)
            if not part:
                raise ConnectionResetError("the server closed the connection")
            data += part
        return data

    def recording(self) -> Recording:
        """What was measured, on the clock of the wall, which logs and other processes share."""
        offset = time.time() - time.perf_counter()
        times = (self._due, self._sent, self._answered)
        # The signal may have come between two appends.
        whole = min(len(values) for values in times)
        due, sent, answered = ([value + offset for value in values[:whole]] for values in times)
        return Recording(
            due,
            sent,
            answered,
            list(self._late),
            self._refused,
            self._lost,
            time.process_time(),
            time.perf_counter() - self._started,
        )


def read_recording(path: Path) -> Recording:
    """What a hammer wrote when it was stopped."""
    return Recording(**json.loads(path.read_text()))


def main() -> None:
    """Entry point of the probe's process; says ``hammering`` once it runs."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Stopped

    hammer = Hammer(args.port, args.interval_ms / 1000)
    signal.signal(signal.SIGTERM, stop)
    print("hammering", flush=True)
    with contextlib.suppress(_Stopped):
        hammer.run()
    partial = args.output.with_suffix(".part")
    partial.write_text(json.dumps(asdict(hammer.recording())))
    os.replace(partial, args.output)


if __name__ == "__main__":
    main()
