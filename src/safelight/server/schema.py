"""``/openapi.json``: what FastAPI derives from the routes, with what the served model takes and every error answer."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi

from safelight.errors import SafelightError
from safelight.model_card import ModelCard
from safelight.params import MAX_PROMPT_CHARS, MAX_SEED
from safelight.server.front import Front
from safelight.server.problems import is_hugging_face, is_sdapi

Schema = dict[str, Any]

_EXAMPLES = ["a large red circle on a blue background"]
_TEXT = "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$"
_LEAST_GUIDANCE, _MOST_TRUE_CFG = 0, 30


def install(app: FastAPI, front: Front) -> None:
    """Has the app answer with this schema. Making it takes a while: not on the event loop, and not twice."""
    made: bytes | None = None

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        nonlocal made
        if made is not None:
            return Response(made, media_type="application/json")
        is_final = all(model.is_known for model in front.models)
        schema = await asyncio.to_thread(lambda: msgspec.json.encode(_schema(app, front)))
        made = schema if is_final else None
        return Response(schema, media_type="application/json")


def _schema(app: FastAPI, front: Front) -> Schema:
    found: Schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = found.setdefault("components", {}).setdefault("schemas", {})
    components.pop("HTTPValidationError", None)
    components.pop("ValidationError", None)
    components |= _ERROR_SCHEMAS
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _declare_errors(path, method, operation)
    limits = _shared([_limits(model.card) for model in front.models if model.is_known])
    for schema in (*components.values(), *_forms(found)):
        _refine(schema, limits)
    return found


def _forms(found: Schema) -> Iterator[Schema]:
    """Forms stand where they are used; each time anew, since they are refined in place."""
    for operation in (operation for operations in found["paths"].values() for operation in operations.values()):
        content = operation.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in content:
            content["multipart/form-data"] = copy.deepcopy(content["multipart/form-data"])
            yield content["multipart/form-data"]["schema"]


# --- errors -------------------------------------------------------------------------------------------------------

_TEXT_MEMBER: Schema = {"type": "string"}
_ERROR_SCHEMAS: Schema = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457's members and OpenAI's error object",
        "required": ["type", "title", "status", "detail", "instance", "error"],
        "properties": {
            "type": _TEXT_MEMBER,
            "title": _TEXT_MEMBER,
            "status": {"type": "integer"},
            "detail": _TEXT_MEMBER,
            "instance": _TEXT_MEMBER,
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": _TEXT_MEMBER,
                    "type": _TEXT_MEMBER,
                    "param": {"type": ["string", "null"]},
                    "code": _TEXT_MEMBER,
                },
            },
        },
    },
    "HuggingFaceError": {"type": "object", "required": ["error"], "properties": {"error": _TEXT_MEMBER}},
    "WebUIError": {
        "type": "object",
        "required": ["error", "detail"],
        "properties": {"error": _TEXT_MEMBER, "detail": _TEXT_MEMBER, "errors": _TEXT_MEMBER},
    },
}


def _declare_errors(path: str, method: str, operation: Schema) -> None:
    responses = operation["responses"]
    if is_hugging_face(path) and method == "post":
        name = "HuggingFaceError"
    else:
        name = "WebUIError" if is_sdapi(path) else "Problem"
    reference = {"schema": {"$ref": f"#/components/schemas/{name}"}}
    content = {media_type: reference for media_type in ("application/json", "application/problem+json")}
    responses.pop("422", None)
    for status, titles in _errors(takes_body="requestBody" in operation):
        answer = responses.setdefault(str(status), {"description": titles})
        if status >= 400 and "content" not in answer:
            answer["content"] = content


def _errors(*, takes_body: bool) -> Iterator[tuple[int, str]]:
    """Statuses and titles of all errors that such a route can answer with."""
    titles: dict[int, list[str]] = {}
    for kind in _leaves(SafelightError):
        if kind.code not in _NEVER_ANSWERED:
            titles.setdefault(kind.status, []).append(kind.title)
    for status in sorted(titles):
        if takes_body or status not in _ONLY_WITH_BODY:
            yield status, ", ".join(titles[status])


_ONLY_WITH_BODY = {413, 415, 422, 429}
_NEVER_ANSWERED = {"safelight_error", "invalid_config", "port_in_use", "store_error"}


def _leaves(kind: type[SafelightError]) -> list[type[SafelightError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _leaves(child))]


# --- what the model takes -----------------------------------------------------------------------------------------


def _limits(card: ModelCard) -> dict[str, Schema]:
    """Constraints of members by their names, which mean the same everywhere."""
    sides = range(-(-card.min_size // card.size_multiple) * card.size_multiple, card.max_size + 1, card.size_multiple)
    side = "|".join(map(str, sides))
    pixels = {"minimum": card.min_size, "maximum": card.max_size, "multipleOf": card.size_multiple}
    steps = {"minimum": 1, "maximum": card.max_num_inference_steps}
    guidance = {"minimum": _LEAST_GUIDANCE, "maximum": card.max_guidance_scale}
    text = {"minLength": 1, "maxLength": MAX_PROMPT_CHARS, "pattern": _TEXT, "examples": _EXAMPLES}
    return {
        "prompt": text,
        "inputs": text,
        "seed": {"minimum": 0, "maximum": MAX_SEED},
        "negative_prompt": {"maxLength": MAX_PROMPT_CHARS, "pattern": "^[^\\u0000]*$"},
        "width": pixels,
        "height": pixels,
        "size": {"pattern": f"^(auto|({side})x({side}))$"},
        "num_inference_steps": steps,
        "steps": steps,
        "guidance_scale": guidance,
        "guidance": guidance,
        "distilled_cfg_scale": guidance,
        "true_cfg_scale": {"minimum": 1, "maximum": _MOST_TRUE_CFG},
        "max_sequence_length": {"minimum": 1, "maximum": card.max_sequence_length},
    }


def _shared(limits: list[dict[str, Schema]]) -> dict[str, Schema]:
    """What holds for all models alike; each may say more of a request that is for it."""
    first = limits[0] if limits else {}
    return {name: limit for name, limit in first.items() if all(other[name] == limit for other in limits)}


def _refine(schema: Schema, limits: dict[str, Schema]) -> None:
    members = schema.get("properties", {})
    for name, member in members.items():
        if name in limits and (schema["title"], name) not in _TAKEN_AS_IT_COMES:
            _kind(member).update(limits[name])
            if "default" in member and member["default"] == "" and "minLength" in limits[name]:
                del member["default"]
                schema.setdefault("required", []).append(name)
    if "seed" in members:
        _kind(members["seed"])["maximum"] = MAX_SEED  # pydantic has made a float of it, which is more
    excluded = [_without(pair) for pair in _EXCLUDED if set(pair) <= set(members)]
    if excluded:
        schema["allOf"] = excluded


def _kind(member: Schema) -> Schema:
    """Of a member that may be null, what it is otherwise."""
    return next(kind for kind in member.get("anyOf", [member]) if kind.get("type") != "null")


_TAKEN_AS_IT_COMES = {("InferenceParameters", "prompt")} | {
    (title, name) for title in ("TextToImage", "ImageToImage") for name in ("width", "height", "steps", "seed")
}
_SAID = {"type": "string", "minLength": 1}
_NO_IMAGE: dict[str, Schema] = {"image": {"type": "null"}, "input_image": {"type": "null"}}
_EXCLUDED: tuple[dict[str, Schema], ...] = (
    {"true_cfg_scale": {"type": "number", "maximum": 1}, "negative_prompt": _SAID},
    {"partial_images": {"type": "integer", "minimum": 1}, "stream": {"enum": [False, None]}},
    {"num_inference_steps": {"type": "integer"}, "steps": {"type": "integer"}},
    {"guidance_scale": {"type": "number"}, "guidance": {"type": "number"}},
    {"image": {"type": "string"}, "input_image": {"type": "string"}},
    {"image": {"type": "string"}, "image_prompt": {"type": "string"}},
    {"input_image": {"type": "string"}, "image_prompt": {"type": "string"}},
    {"mask": {"type": "string"}, **_NO_IMAGE},
    {"prompt_strength": {"type": "number"}, **_NO_IMAGE},
)
"""Members that contradict each other, the first one being there; one that is absent counts as null."""


def _without(pair: dict[str, Schema]) -> Schema:
    required = [name for name, kind in pair.items() if "null" not in str(kind) and "None" not in str(kind)]
    return {"not": {"required": required, "properties": pair}}
