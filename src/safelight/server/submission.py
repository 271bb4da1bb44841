"""What every route that makes a job does alike: hand over what was asked, and what the headers say of the caller."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Request

from safelight.errors import RateLimited, SafelightError
from safelight.jobs import Job, JobRequest, Webhook
from safelight.params import GenerationParams
from safelight.server.callers import owner_of, priority_of
from safelight.server.database import IdempotencyKey
from safelight.server.front import Front
from safelight.server.job_spans import asked_for
from safelight.server.request_id import add_headers, request_id_of
from safelight.server.served_model import ServedModel
from safelight.server.uploads import Upload

log = logging.getLogger(__name__)


async def submit(
    front: Front,
    request: Request,
    model: ServedModel,
    api: str,
    params: GenerationParams,
    key: IdempotencyKey | None = None,
    asked: dict[str, Any] | None = None,
    client_id: str = "",
    webhook: Webhook | None = None,
    upload: Upload | None = None,
) -> Job:
    """An accepted job. ``upload`` is what it changes, ``asked`` is what the caller wrote, for APIs that repeat it.

    Raises ``RateLimited``, as ``LoraShelf.check``, and as ``Dispatcher.submit``.
    """
    await front.loras.of(model).check(params.loras)
    owner = owner_of(request)
    span = front.tracing.request_span()
    made = JobRequest(
        params=params,
        model=model.name,
        request_id=request_id_of(request.scope),
        owner=owner,
        api=api,
        priority=priority_of(request),
        input=asked or {},
        client_id=client_id,
        webhook=webhook,
        trace_context=dict(span.context),
    )
    try:
        try:
            front.rate_limit.take(owner, params.work)
        except RateLimited as error:
            front.metrics.refused.labels(error.code).inc()
            raise
        try:
            job = await front.dispatcher.submit(made, key, upload.files if upload else {})
        except SafelightError:
            front.rate_limit.give_back(owner, params.work)
            raise
    finally:
        add_headers(request.scope, front.rate_limit.headers(owner))
    span.note({"safelight.job.id": job.id, "safelight.request.id": made.request_id, **asked_for(params, model.name)})
    if front.config.log_prompts:
        log.info("%s: %r", job.id, params.prompt, extra=job.ids)
    front.webhooks.accompany(job)
    return job
