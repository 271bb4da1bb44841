"""Sends requests when they are due, whether the server keeps up or not, and takes the times of what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import httpx2 as httpx

from benchmarks.traffic import Asked

IMAGES_PATH = "/v1/images/generations"
PNG_IN_JSON = b'"b64_json":"iVBORw0KGgo'

_HEAD_START_S = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one request; seconds count from the time at which it was due.

    ``outcome`` is ``ok``, the status of an answer without a picture, ``timeout``, or the kind of failure.
    ``late_s`` is how much later than due this client got to send it, which is inside ``latency_s``.
    """

    outcome: str
    late_s: float
    latency_s: float
    first_preview_s: float | None = None


class _NoPicture(Exception):
    """The server answered, but not with a picture."""


def send_all(url: str, plan: Sequence[Asked], timeout_s: float) -> list[Answered]:
    """Returns when every request of ``plan`` is answered, or ``timeout_s`` have passed since it was due."""
    return asyncio.run(_send_all(url, plan, timeout_s))


async def _send_all(url: str, plan: Sequence[Asked], timeout_s: float) -> list[Answered]:
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=unlimited, trust_env=False) as client:
        # Making the tasks takes time too, which the first request must not pay.
        start_s = asyncio.get_running_loop().time() + _HEAD_START_S
        return await asyncio.gather(*(_send(client, asked, start_s + asked.due_s, timeout_s) for asked in plan))


async def _send(client: httpx.AsyncClient, asked: Asked, due_s: float, timeout_s: float) -> Answered:
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(due_s - clock())
    late_s = clock() - due_s
    first_preview_s = None
    outcome = "ok"
    try:
        async with asyncio.timeout_at(due_s + timeout_s):
            if asked.is_streamed:
                first_preview_s = await _first_preview(client, asked) - due_s
            else:
                await _picture(client, asked)
    except TimeoutError:
        outcome = "timeout"
    except _NoPicture as error:
        outcome = str(error)
    except httpx.HTTPError as error:
        outcome = type(error).__name__
    return Answered(outcome, late_s, clock() - due_s, first_preview_s)


async def _picture(client: httpx.AsyncClient, asked: Asked) -> None:
    answer = await client.post(IMAGES_PATH, json=asked.body())
    # The JSON of a large picture is megabytes: reading it as such here would delay the next request.
    if answer.status_code != httpx.codes.OK or PNG_IN_JSON not in answer.content:
        raise _NoPicture(str(answer.status_code))


async def _first_preview(client: httpx.AsyncClient, asked: Asked) -> float:
    """Reads the stream to its end; when the first preview was there in full, on the loop's clock."""
    clock = asyncio.get_running_loop().time
    times: dict[str, float] = {}
    async with client.stream("POST", IMAGES_PATH, json=asked.body()) as answer:
        if answer.status_code != httpx.codes.OK:
            raise _NoPicture(str(answer.status_code))
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.rpartition(".")[2]
            elif not line:
                times.setdefault(name, clock())
    if "completed" not in times:
        raise _NoPicture("stream without a picture")
    return times.get("partial_image", times["completed"])
