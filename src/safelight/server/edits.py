"""OpenAI's ``POST /v1/images/edits`` and ``/v1/images/variations``: pictures that begin with a picture."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from safelight.errors import InvalidValue, MissingParameter, UnsupportedMediaType, UnsupportedValue
from safelight.model_card import Task
from safelight.params import MAX_LORAS, ImageFormat
from safelight.server.front import Front
from safelight.server.generation_request import LoraRequest
from safelight.server.images import ANSWERS, ImagesRequest, asked_size, draw
from safelight.server.problems import from_validation
from safelight.server.uploads import MAX_UPLOAD_BYTES, read_upload

_IMAGE_NAMES = ("image", "image[]")
_FILE_NAMES = (*_IMAGE_NAMES, "mask")
_VARIATION_STRENGTH = 0.5
_MAX_FILES, _MAX_FIELDS = 17, 60


def _parsed(text: object) -> object:
    """What a form has as text."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        raise ValueError("it is not JSON") from None


class EditRequest(ImagesRequest):
    """The members of a generation, as the text that forms have; ``strength`` is how much may change."""

    model_config = ConfigDict(strict=False, extra="forbid", allow_inf_nan=False)

    prompt: str = ""
    loras: Annotated[list[LoraRequest], Field(max_length=MAX_LORAS), BeforeValidator(_parsed)] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: str | None = None


def _content(*required: str) -> dict[str, Any]:
    """The form, for the schema: what a generation takes, as text, and files."""
    file = {"type": "string", "format": "binary"}
    members = EditRequest.model_json_schema()["properties"]
    for member in members.values():  # a form has no null
        if kinds := [kind for kind in member.pop("anyOf", []) if kind.get("type") != "null"]:
            member.update(kinds[0])
        member.pop("default", None)
    members["loras"] = {"type": "string", "description": 'JSON, as in [{"name": "pastel", "scale": 0.8}]'}
    members["image"] = file | {"description": "PNG, JPEG or WebP"}
    members["mask"] = file | {"description": "where it is transparent or white, the picture is drawn anew"}
    schema: dict[str, Any] = {"type": "object", "title": "EditForm", "required": list(required), "properties": members}
    schema["additionalProperties"] = False
    media_types = ", ".join(kind.media_type for kind in ImageFormat)
    encoding = {name: {"contentType": media_types} for name in ("image", "mask")}
    form = {"schema": schema, "encoding": encoding}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": form}}}


def routes(front: Front) -> APIRouter:
    """Two routes: a thin layer over one job."""
    router = APIRouter(prefix="/v1/images", tags=["images"])

    @router.post("/edits", responses=ANSWERS, openapi_extra=_content("image", "prompt"))
    async def edit(request: Request) -> Response:
        """Changes a picture as the prompt says; with a mask, only there. The rest stays as it is, to the pixel."""
        return await _edit(front, request)

    @router.post("/variations", responses=ANSWERS, openapi_extra=_content("image"))
    async def vary(request: Request) -> Response:
        """Draws the picture again, a little different."""
        return await _edit(front, request, Task.IMAGE_TO_IMAGE, default_strength=_VARIATION_STRENGTH)

    async def options() -> Response:
        return Response(status_code=204, headers={"allow": "POST, OPTIONS"})

    for path in ("/edits", "/variations"):
        router.add_api_route(path, options, methods=["OPTIONS"], include_in_schema=False)
    return router


async def _edit(
    front: Front, request: Request, task: Task | None = None, default_strength: float | None = None
) -> Response:
    """With a ``task``, which the model must be able to do, no prompt is needed."""
    async with _form(request) as form:
        body = _fields(form)
        model = await front.models.wait_for(body.model)
        card = model.card
        if task is not None:
            card.check_task(task)
        image, mask = await _image(form), await _file(form, "mask")
    if task is None and not body.prompt.strip():
        raise MissingParameter("prompt is required", param="prompt")
    size = None if body.size in (None, "auto") and not (body.width or body.height) else asked_size(body, card)
    strength = default_strength if body.strength is None else body.strength
    upload = await read_upload(card, image, mask, strength, size)
    return await draw(front, request, body, model, "image_edit", upload)


@contextlib.asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The parts of a multipart body; its files are closed at the end."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UnsupportedMediaType("this route takes multipart/form-data")
    form = await request.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=MAX_UPLOAD_BYTES)
    try:
        yield form
    finally:
        await form.close()


def _fields(form: FormData) -> EditRequest:
    fields = {name: value for name, value in form.multi_items() if name not in _FILE_NAMES}
    for name, value in fields.items():
        if isinstance(value, UploadFile):
            raise InvalidValue(f"{name} is a file: it must be text", param=name)
    try:
        return EditRequest.model_validate(fields)
    except ValidationError as error:
        found = error.errors()[0]
        raise from_validation({**found, "loc": ("body", *found["loc"])}) from None


async def _image(form: FormData) -> bytes:
    sent = [part for name in _IMAGE_NAMES for part in form.getlist(name)]
    if not sent:
        raise MissingParameter("image is required", param="image")
    if len(sent) > 1:
        raise UnsupportedValue(f"{len(sent)} images were sent: this model changes one", param="image")
    return await _bytes(sent[0], "image")


async def _file(form: FormData, name: str) -> bytes | None:
    part = form.get(name)
    return None if part is None else await _bytes(part, name)


async def _bytes(part: UploadFile | str, name: str) -> bytes:
    if isinstance(part, str):
        raise InvalidValue(f"{name} is text: it must be a file", param=name)
    return await part.read()
