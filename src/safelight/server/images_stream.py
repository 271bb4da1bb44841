"""OpenAI's Images API as a stream: pictures that develop, then the finished ones.

No ``id:`` and no ``retry:`` lines: with them OpenAI's own SDKs fail at the next comment. A stream that just ends counts
as a success there, so every other end is said in an ``error`` event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi.responses import StreamingResponse

from safelight.errors import SafelightError
from safelight.jobs import Job
from safelight.protocol import Preview
from safelight.server.event_stream import PING, event, event_stream
from safelight.server.follow import OnDisconnect, watch
from safelight.server.front import Front
from safelight.server.pictures import Base64, Part, stream_parts
from safelight.server.problems import problem_members


def image_stream(front: Front, job: Job, kind: str, usage: Callable[[Job], dict[str, Any]]) -> StreamingResponse:
    """``kind`` is image_generation or image_edit. The job is cancelled if the client goes."""
    headers = {"x-seed": str(job.params.seed), "x-job-id": job.id}
    return event_stream(_events(front, job, kind, usage), headers)


async def _events(front: Front, job: Job, kind: str, usage: Callable[[Job], dict[str, Any]]) -> AsyncIterator[bytes]:
    shown: set[tuple[int, int]] = set()
    try:
        async for has_changed in watch(front.dispatcher, job, OnDisconnect.CANCEL):
            if not has_changed:
                yield PING
                continue
            for preview in [preview for preview in job.previews if _place(preview) not in shown]:
                shown.add(_place(preview))
                async for piece in stream_parts(_partial(job, preview, kind)):
                    yield piece
        job.raise_unless_succeeded()
        for index in range(job.params.num_images):
            async for piece in stream_parts(_completed(front, job, index, kind, usage(job))):
                yield piece
    except SafelightError as error:
        body = {"type": "error", "error": problem_members(error)}
        yield event("error", msgspec.json.encode(body).decode())


def _place(preview: Preview) -> tuple[int, int]:
    """The same in every attempt, so that nothing is shown twice after a worker died."""
    return preview.image_index, preview.number


def _partial(job: Job, preview: Preview, kind: str) -> list[Part]:
    members = {"partial_image_index": preview.number, "image_index": preview.image_index, "step": preview.step}
    return _event(f"{kind}.partial_image", _members(job) | members, Base64(preview.data))


def _completed(front: Front, job: Job, index: int, kind: str, usage: dict[str, Any]) -> list[Part]:
    image = job.result.images[index]
    members = {"image_index": index, "seed": image.seed, "usage": usage, "warnings": job.result.warnings}
    return _event(f"{kind}.completed", _members(job) | members, Base64(front.store.results.path(image.file)))


def _members(job: Job) -> dict[str, Any]:
    params = job.params
    return {
        "created_at": int(job.created_s),
        "size": f"{params.width}x{params.height}",
        "quality": "auto",
        "background": "opaque",
        "output_format": params.output_format.value,
    }


def _event(name: str, members: dict[str, Any], picture: Base64) -> list[Part]:
    rest = msgspec.json.encode({"type": name} | members)[:-1]
    return [f"event: {name}\ndata: ".encode() + rest + b',"b64_json":"', picture, b'"}\n\n']
