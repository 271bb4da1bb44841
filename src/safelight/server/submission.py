"""What every route that makes a job does alike: hand over what was asked, and what the headers say of the caller."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from safelight.jobs import Job, JobRequest
from safelight.params import GenerationParams
from safelight.server.callers import owner_of, priority_of
from safelight.server.database import IdempotencyKey
from safelight.server.front import Front
from safelight.server.request_id import request_id_of


async def submit(
    front: Front,
    request: Request,
    api: str,
    params: GenerationParams,
    key: IdempotencyKey | None = None,
    asked: dict[str, Any] | None = None,
    client_id: str = "",
) -> Job:
    """An accepted job. ``asked`` is what the caller wrote, for APIs that repeat it. Raises as ``Dispatcher.submit``."""
    return await front.dispatcher.submit(
        JobRequest(
            params=params,
            request_id=request_id_of(request.scope),
            owner=owner_of(request),
            api=api,
            priority=priority_of(request),
            input=asked or {},
            client_id=client_id,
        ),
        key,
    )
