"""``create_app``: the routes, the error answers and the limits of the HTTP side, around one ``Front``."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from safelight import __version__
from safelight.server import bfl, files, health, huggingface, images, kserve, models, predictions, problems, sdapi
from safelight.server.admission import Admission
from safelight.server.body_limit import BodyLimit
from safelight.server.front import Front
from safelight.server.request_id import RequestId

MAX_JSON_BYTES = 1024 * 1024
APIS = (health, predictions, models, images, files, huggingface, sdapi, kserve, bfl)


def create_app(front: Front) -> ASGIApp:
    """The ASGI application. The front is started and stopped by whoever made it."""
    app = FastAPI(title="Safelight", version=__version__, docs_url=None, redoc_url=None)
    for api in APIS:
        app.include_router(api.routes(front))
    problems.install(app)
    if front.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=front.config.allowed_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return RequestId(Admission(BodyLimit(app, MAX_JSON_BYTES), front.config))
