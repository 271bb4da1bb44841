"""Error answers: OpenAI's ``error`` object merged with RFC 9457's members, so that SDKs of both kinds read them.

Two APIs have forms of their own: Hugging Face's clients read ``error`` as text, AUTOMATIC1111's read ``detail``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match

from safelight.errors import (
    BodyTooLarge,
    InternalError,
    InvalidJSON,
    InvalidRequest,
    InvalidValue,
    MethodNotAllowed,
    MissingParameter,
    NotFound,
    SafelightError,
    UnknownParameter,
    UnsupportedMediaType,
)
from safelight.server.request_id import request_id_of

log = logging.getLogger(__name__)

_MAX_TEXT_CHARS = 1000
_PLAIN_JSON_PATHS = ("/v1/images", "/v1/models")
_PROBLEM_PATH = "/predictions"
_HUGGING_FACE_PATHS = ("/models/", "/hf/")
_SDAPI_PATH = "/sdapi/"
_BY_PYDANTIC_TYPE: dict[str, type[InvalidRequest]] = {
    "missing": MissingParameter,
    "extra_forbidden": UnknownParameter,
    "json_invalid": InvalidJSON,
}
_BY_STATUS: dict[int, type[SafelightError]] = {
    400: InvalidJSON,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def problem(request: Request, error: SafelightError) -> JSONResponse:
    """The answer for one error. The media type is RFC 9457's, except where OpenAI's clients expect plain JSON."""
    path = request.scope["path"]
    message = _shortened(error.message)
    body = {
        "type": f"urn:safelight:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": message,
        "instance": f"{path}#{request_id_of(request.scope)}",
        "error": problem_members(error),
    }
    headers = {}
    if error.status in (429, 503, 507):
        headers["retry-after"] = str(error.retry_after_s or 10)
    should_retry = False if error.status < 429 else error.should_retry
    if should_retry is not None:
        headers["x-should-retry"] = str(should_retry).lower()
    if is_hugging_face(path) and request.method == "POST":
        headers |= {"x-error-code": error.code, "x-error-message": message.encode("ascii", "replace").decode()}
        return JSONResponse({"error": message}, status_code=error.status, headers=headers)
    if is_sdapi(path):
        body = {"error": type(error).__name__, "detail": message, "body": "", "errors": message}
        return JSONResponse(body, status_code=error.status, headers=headers)
    plain = path.startswith(_PLAIN_JSON_PATHS) and not path.endswith(_PROBLEM_PATH)
    media_type = "application/json" if plain else "application/problem+json"
    return JSONResponse(body, status_code=error.status, headers=headers, media_type=media_type)


def is_hugging_face(path: str) -> bool:
    """Whether that path's clients read Hugging Face's errors."""
    return path == "/" or path.startswith(_HUGGING_FACE_PATHS)


def is_sdapi(path: str) -> bool:
    """Whether that path's clients read AUTOMATIC1111's errors."""
    return path.startswith(_SDAPI_PATH)


def problem_members(error: SafelightError) -> dict[str, str | None]:
    """OpenAI's ``error`` object."""
    param = error.param and _shortened(error.param)
    return {"message": _shortened(error.message), "type": error.error_type, "param": param, "code": error.code}


def _shortened(text: str) -> str:
    """Messages quote what was sent, and what was sent may be a megabyte."""
    return text if len(text) <= _MAX_TEXT_CHARS else f"{text[:_MAX_TEXT_CHARS]}…"


def install(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Turns every exception that can leave a route into a problem."""
    app.state.routes = [route for route in routes if route.include_in_schema]
    app.add_exception_handler(SafelightError, _on_safelight_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_defect)


async def _on_safelight_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SafelightError)
    return problem(request, error)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return problem(request, from_validation(error.errors()[0]))


def from_validation(found: dict[str, Any]) -> InvalidRequest:
    """One of pydantic's findings as our error; ``param`` is the path of the member inside the body."""
    kind = _BY_PYDANTIC_TYPE.get(found["type"], InvalidValue)
    path = ".".join(str(part) for part in found["loc"][1:])
    if kind is InvalidJSON:
        return InvalidJSON("the body is not JSON")
    if not path:
        return kind("the body must be a JSON object, sent as application/json")
    sentences = {MissingParameter: "is required", UnknownParameter: "is not a parameter of this route"}
    reason = sentences.get(kind) or f"is wrong: {found['msg']}"
    return kind(f"{path} {reason}", param=path)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InternalError)
    messages: dict[type[SafelightError], str] = {
        NotFound: f"there is nothing at {request.scope['path']}",
        MethodNotAllowed: f"{request.method} is not allowed at {request.scope['path']}",
        InvalidJSON: "the body is not JSON",
    }
    response = problem(request, kind(messages.get(kind) or str(error.detail)))
    response.headers.update(error.headers or {})
    if kind is MethodNotAllowed:
        response.headers["allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Of the route with the most particular path: starlette names those of the first that matches."""
    found: dict[str, set[str]] = {}
    for route in request.app.state.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found.setdefault(route.path, set()).update(route.methods or ())
    return found[max(found, key=len)] if found else set()


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    log.error("request %s failed", request_id_of(request.scope), exc_info=error)
    return problem(request, InternalError("something went wrong here; the log has the cause under the request id"))
