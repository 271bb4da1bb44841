"""The job API in Replicate's shapes: create, wait, follow, get, list, cancel, and the pictures of a job.

A job can be seen by who made it only: for everyone else it does not exist.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from safelight.errors import InvalidValue, LoadError, NotFound, ShuttingDown
from safelight.jobs import Job, JobStatus
from safelight.server.callers import idempotency_of, on_disconnect_of, owner_of, wait_of
from safelight.server.database import IdempotencyKey
from safelight.server.files import picture_response
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.pictures import Base64, Part, json_response
from safelight.server.prediction_request import (
    PredictionRequest,
    base_url,
    prediction_params,
    webhook_of,
    written_by_caller,
)
from safelight.server.prediction_stream import COG, REPLICATE, Place, prediction_stream
from safelight.server.served_model import ServedModel
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit

_PAGE_COUNT = 100
_CANCEL_WAIT_S = 2.0
_MAX_SEARCH_CHARS = 200

EventId = Annotated[str, Query(pattern=r"^([0-9]{1,9}-[0-9]{1,9})?$")]
_OTHER_STATUSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The job of an earlier PUT has ended, or a stream, as the Accept header asks",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    202: {"description": "Accepted, as respond-async asks"},
}

Search = Annotated[str, Query(max_length=_MAX_SEARCH_CHARS, description="words that the prompt has")]
ClientId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def routes(front: Front) -> APIRouter:
    """The same under ``/v1``, as Replicate has them, and at the root, as cog's servers do."""
    router = APIRouter(tags=["predictions"], route_class=StrictJSONRoute)
    for prefix, in_schema in (("/v1/predictions", True), ("/predictions", False)):
        _add_jobs(router, front, prefix, in_schema=in_schema)
        _add_pictures(router, front, prefix, in_schema=in_schema)

    @router.post("/v1/models/{owner}/{name}/predictions", status_code=201, responses=_OTHER_STATUSES)
    async def create_for_model(owner: str, name: str, body: PredictionRequest, request: Request) -> Response:
        """As ``POST /v1/predictions``, for the model of that name."""
        return await _create(front, body, request, await idempotency_of(request), model_name=f"{owner}/{name}")

    @router.get("/v1/webhooks/default/secret")
    async def webhook_secret(request: Request) -> dict[str, str]:
        """What the caller's webhooks are signed with."""
        return {"key": front.webhooks.secret(owner_of(request))}

    return router


def _add_jobs(router: APIRouter, front: Front, prefix: str, *, in_schema: bool) -> None:
    """Make one, look at it, end it."""

    @router.post(prefix, status_code=201, responses=_OTHER_STATUSES, include_in_schema=in_schema)
    async def create(body: PredictionRequest, request: Request) -> Response:
        """Accepts a job. ``Prefer: wait=N`` waits up to N seconds for its end; ``respond-async`` answers 202."""
        return await _create(front, body, request, await idempotency_of(request))

    @router.put(f"{prefix}/{{prediction_id}}", status_code=201, responses=_OTHER_STATUSES, include_in_schema=in_schema)
    async def put(prediction_id: ClientId, body: PredictionRequest, request: Request) -> Response:
        """As ``POST``, under the caller's own id: repeated, it returns the same job."""
        if body.id not in (None, prediction_id):
            raise InvalidValue("id in the body is not the id in the path", param="id")
        key = await idempotency_of(request, prediction_id)
        return await _create(front, body, request, key, client_id=prediction_id)

    @router.get(prefix, include_in_schema=in_schema)
    async def list_predictions(request: Request, cursor: str | None = None, search: Search = "") -> dict[str, Any]:
        """The caller's jobs, newest first, a hundred at a time; ``search`` finds prompts that have all its words."""
        jobs = await front.ledger.page(owner_of(request), _decode_cursor(cursor), _PAGE_COUNT, search.split())
        url = base_url(request)
        following = None
        if len(jobs) == _PAGE_COUNT:
            query = {"cursor": _encode_cursor(jobs[-1])} | ({"search": search} if search else {})
            following = f"{url}/v1/predictions?{urlencode(query)}"
        return {"next": following, "previous": None, "results": [front.show(job, url) for job in jobs]}

    @router.get(f"{prefix}/{{prediction_id}}", include_in_schema=in_schema)
    async def get(prediction_id: str, request: Request) -> Response:
        """One job, as it stands now."""
        return await _answer(front, await _find(front, prediction_id, request), request)

    @router.delete(f"{prefix}/{{prediction_id}}", status_code=204, include_in_schema=in_schema)
    async def delete(prediction_id: str, request: Request) -> Response:
        """Forgets a job that has ended, and removes its pictures; 409 while it waits or runs."""
        await front.ledger.forget(await _find(front, prediction_id, request))
        return Response(status_code=204)

    @router.post(f"{prefix}/{{prediction_id}}/cancel", include_in_schema=in_schema)
    async def cancel(prediction_id: str, request: Request) -> Response:
        """Cancels a waiting job at once, a running one at its next step; a finished one is returned unchanged."""
        job = await _find(front, prediction_id, request)
        with contextlib.suppress(TimeoutError):  # it goes on by itself once the disk takes it
            async with asyncio.timeout(_CANCEL_WAIT_S):
                await front.dispatcher.cancel(job)
        await follow(request, front.dispatcher, job, OnDisconnect.KEEP, _CANCEL_WAIT_S)
        return await _answer(front, job, request)


def _add_pictures(router: APIRouter, front: Front, prefix: str, *, in_schema: bool) -> None:
    """Watch what a job draws, and fetch it."""

    @router.get(f"{prefix}/{{prediction_id}}/stream", response_class=StreamingResponse, include_in_schema=in_schema)
    async def stream(
        prediction_id: str, request: Request, starting_after: EventId | None = None, previews: bool = False
    ) -> StreamingResponse:
        """What happens to the job, as server-sent events. ``Last-Event-ID`` or ``starting_after`` goes on from there,
        ``previews`` adds events for pictures that are not finished.
        """
        job = await _find(front, prediction_id, request)
        after = Place.of(starting_after or request.headers.get("last-event-id"))
        url = base_url(request)
        return prediction_stream(
            front.dispatcher, job, lambda: front.show(job, url), REPLICATE, after, with_previews=previews
        )

    @router.get(f"{prefix}/{{prediction_id}}/preview/{{index}}", response_class=Response, include_in_schema=in_schema)
    async def preview(prediction_id: str, index: int, request: Request) -> Response:
        """The newest unfinished picture of a job that runs."""
        job = await _find(front, prediction_id, request)
        found = [shown.data for shown in job.previews if shown.image_index == index]
        if not found:
            raise NotFound("there is no such preview")
        headers = {"cache-control": "no-store", "x-job-id": job.id}
        return Response(found[-1], headers=headers, media_type=job.params.output_format.media_type)

    @router.get(f"{prefix}/{{prediction_id}}/output/{{index}}", response_class=Response, include_in_schema=in_schema)
    async def output(prediction_id: str, index: int, request: Request) -> Response:
        """One picture of a job that succeeded."""
        return await picture_response(front, await _find(front, prediction_id, request), index)


async def _create(
    front: Front,
    body: PredictionRequest,
    request: Request,
    key: IdempotencyKey | None,
    client_id: str = "",
    model_name: str | None = None,
) -> Response:
    model = await _model(front, model_name, body.version, body.model)
    params, upload = await prediction_params(body.input, model.card)
    webhook = webhook_of(front, body, request)
    wait_s = wait_of(request)
    on_disconnect = on_disconnect_of(request, OnDisconnect.KEEP)
    job = await submit(
        front,
        request,
        model,
        "predictions",
        params,
        key,
        written_by_caller(body),
        client_id=client_id,
        webhook=webhook,
        upload=upload,
    )
    if request.headers.get("accept", "").startswith("text/event-stream"):
        url = base_url(request)
        return prediction_stream(front.dispatcher, job, lambda: front.show(job, url), COG, on_disconnect=on_disconnect)
    if wait_s:
        # Nobody works on it now, but it is accepted and will be done: that is an answer, not an error.
        with contextlib.suppress(ShuttingDown, LoadError):
            await follow(request, front.dispatcher, job, on_disconnect, wait_s)
    return await _created(front, job, request, wait_s)


async def _model(front: Front, *names: str | None) -> ServedModel:
    """The one that all names mean that were given. Raises ``ModelNotFound``, or ``InvalidValue`` if they disagree."""
    meant = {name: await front.models.wait_for(name) for name in names if name is not None}
    if len(set(meant.values())) > 1:
        raise InvalidValue(f"{' and '.join(map(repr, meant))} are different models: name one", param="model")
    return next(iter(meant.values()), None) or await front.models.wait_for(None)


async def _created(front: Front, job: Job, request: Request, wait_s: float | None) -> Response:
    shown = front.show(job, base_url(request))
    headers = {"x-job-id": job.id, "location": shown["urls"]["get"]}
    if not job.status.is_terminal:
        # Replicate's SDKs poll on from this status only; every other one they take for the end.
        shown["status"] = "starting"
    if wait_s is not None:
        headers["preference-applied"] = f"wait={wait_s:.0f}" if wait_s else "respond-async"
    if wait_s == 0:
        return await _sent(front, job, request, shown, headers, 202)
    status_code = 200 if request.method == "PUT" and job.status.is_terminal else 201
    return await _sent(front, job, request, shown, headers, status_code)


async def _answer(front: Front, job: Job, request: Request) -> Response:
    return await _sent(front, job, request, front.show(job, base_url(request)), {}, 200)


async def _sent(
    front: Front, job: Job, request: Request, shown: dict[str, Any], headers: dict[str, str], status_code: int
) -> Response:
    if job.status is not JobStatus.SUCCEEDED or not _wants_data(request):
        return Response(msgspec.json.encode(shown), status_code, headers, media_type="application/json")
    del shown["output"]
    parts: list[Part] = [msgspec.json.encode(shown)[:-1], b',"output":[']
    for number, image in enumerate(job.result.images):
        start = f'{"," if number else ""}"data:{image.format.media_type};base64,'
        parts += [start.encode(), Base64(front.store.results.path(image.file)), b'"']
    return await json_response([*parts, b"]}"], headers, status_code)


def _wants_data(request: Request) -> bool:
    """Pictures inside the answer. Replicate's SDKs make files of https and data addresses only, not of http ones."""
    asked = request.headers.get("x-output", "")
    if asked not in ("", "url", "data"):
        raise InvalidValue(f"x-output is {asked!r}: it is url or data", param="x-output")
    is_sdk = request.headers.get("user-agent", "").startswith("replicate-")
    return asked == "data" or (not asked and is_sdk and request.url.scheme == "http")


async def _find(front: Front, prediction_id: str, request: Request) -> Job:
    job = await front.ledger.find(prediction_id, owner_of(request))
    if job is None:
        raise NotFound(f"there is no job {prediction_id!r}")
    return job


def _encode_cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_s!r} {job.id}".encode()).decode()


def _decode_cursor(cursor: str | None) -> tuple[float, str]:
    if cursor is None:
        return float("inf"), ""
    try:
        created_s, _, job_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return float(created_s), job_id
    except (ValueError, binascii.Error):
        raise NotFound("cursor is not one that this server gave", param="cursor") from None
