"""``create_app``: the routes, the error answers and the limits of the HTTP side, around one ``Front``."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from safelight import __version__
from safelight.server import (
    bfl,
    edits,
    files,
    health,
    huggingface,
    images,
    kserve,
    loras,
    models,
    page,
    predictions,
    problems,
    schema,
    sdapi,
    workers,
)
from safelight.server.admission import Admission
from safelight.server.body_limit import BodyLimit
from safelight.server.front import Front
from safelight.server.request_id import RequestId
from safelight.server.uploads import MAX_UPLOAD_BYTES

MAX_JSON_BYTES = 1024 * 1024
_TEXT_ONLY_PATH = "/v1/images/generations"
APIS = (health, predictions, models, workers, loras, images, edits, files, huggingface, sdapi, kserve, bfl, page)


def _limit_bytes(path: str) -> int:
    """Of the body of a request; pictures come where they can be changed."""
    return MAX_JSON_BYTES if path == _TEXT_ONLY_PATH else MAX_UPLOAD_BYTES


def _telemetry(front: Front) -> TelemetryConfig:
    """Spans of requests that may make a job, if anybody wants them; nothing else."""
    return {
        "tracing": front.tracing.provider is not None,
        "tracer_provider": front.tracing.provider,
        "exclude": lambda scope: scope.get("method") not in ("POST", "PUT"),
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        "auto_configure": False,
    }


def create_app(front: Front) -> ASGIApp:
    """The ASGI application. The front is started and stopped by whoever made it."""
    app = FastAPI(title="Safelight", version=__version__, openapi_url=None, telemetry=_telemetry(front))
    routers = [api.routes(front) for api in APIS]
    for router in routers:
        app.include_router(router)
    problems.install(app, [route for router in routers for route in router.routes if isinstance(route, APIRoute)])
    schema.install(app, front)
    if front.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=front.config.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return RequestId(Admission(BodyLimit(app, _limit_bytes), front.config))
