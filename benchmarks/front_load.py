"""The load of ``bench_front``, in a process of its own: as many requests as the front takes from so many clients.

``python -m benchmarks.front_load --port 8000 --clients 64 --seconds 5``; prints what came of it as JSON. Each client
sends its next request when its last one is answered. With ``--wait`` an answer comes when the job has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.latency import percentile
from benchmarks.quick_client import QuickConnection, post

PATH = "/v1/predictions"
_WAIT = "prefer: wait=60"
_PERCENTS = (50, 99)


class ClosedLoop:
    """Clients that ask until the time is over or the count is reached."""

    def __init__(self, port: int, request: bytes, count: int, seconds: float) -> None:
        self._port = port
        self._request = request
        self._left = count
        self._seconds = seconds
        self._end_s = 0.0
        self._latency_s = array("d")
        self._statuses: Counter[int] = Counter()

    async def run(self, clients: int) -> dict[str, Any]:
        """All clients at once; what they saw, and what this process took of a core."""
        connections = [await QuickConnection.open("127.0.0.1", self._port) for _ in range(clients)]
        cpu_s, start_s = time.process_time(), time.perf_counter()
        self._end_s = start_s + self._seconds
        await asyncio.gather(*(self._ask(connection) for connection in connections))
        seconds = time.perf_counter() - start_s
        cpu_share = (time.process_time() - cpu_s) / seconds
        for connection in connections:
            connection.close()
        return self._figures(seconds) | {"client_cpu_share": round(cpu_share, 3)}

    async def _ask(self, connection: QuickConnection) -> None:
        clock = time.perf_counter
        while self._left > 0 and (begun_s := clock()) < self._end_s:
            self._left -= 1
            status, _ = await connection.ask(self._request)
            self._latency_s.append(clock() - begun_s)
            self._statuses[status] += 1

    def _figures(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self._latency_s)
        ranks = {f"p{percent}_ms": round(1000 * percentile(ordered, percent), 2) for percent in _PERCENTS}
        return {
            "seconds": round(seconds, 3),
            "answers": len(ordered),
            "per_s": round(len(ordered) / seconds, 1),
            **ranks,
            "max_ms": round(1000 * ordered[-1], 2),
            "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
        }


def prediction_request(steps: int, *, waits: bool, prompt: str = "a red circle") -> bytes:
    """``POST /v1/predictions`` for a small picture; with ``waits`` it is answered at the job's end."""
    body = {"input": {"prompt": prompt, "width": 64, "height": 64, "num_inference_steps": steps}}
    return post(PATH, json.dumps(body).encode(), *([_WAIT] if waits else []))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--count", type=int, default=10**9, help="requests, over all clients")
    parser.add_argument("--seconds", type=float, default=10**9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--wait", action="store_true", help="for the job's end")
    args = parser.parse_args(arguments)
    request = prediction_request(args.steps, waits=args.wait)
    found = asyncio.run(ClosedLoop(args.port, request, args.count, args.seconds).run(args.clients))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
