"""What each family of FLUX.1 can be asked for holds on every route; what it cannot do is refused in a sentence."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import msgspec
import numpy as np
import pytest
from PIL import Image

from safelight.checkpoint import opening
from safelight.checkpoint.stand_in import STUB
from safelight.config import STUB_MODEL
from safelight.model_card import Family, ModelCard
from tests.unit.stub_front import stub_server

pytestmark = pytest.mark.anyio

SMALL = {"default_width": 64, "default_height": 64, "min_size": 16, "max_sequence_length": 64}


def _serve(monkeypatch: pytest.MonkeyPatch, family: Family, **changes: Any) -> None:
    """The stub engine under the card of a family, for small pictures."""
    card = msgspec.structs.replace(ModelCard.of_family(family, STUB_MODEL), **SMALL | changes)
    monkeypatch.setattr(opening, "STUB", dataclasses.replace(STUB, card=card))


def _file(size: tuple[int, int] = (64, 64), colour: Any = (0, 0, 255), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


IMAGE, WIDE = _file(), _file((200, 100))
MASK, CLEAR = _file(colour=255, mode="L"), _file(colour=(0, 0, 255, 0), mode="RGBA")
TEXT = {"prompt": "a red circle", "steps": 2}


def _edit(path: str = "edits", fields: dict[str, str] | None = None, **files: bytes) -> dict[str, Any]:
    return {
        "url": f"/v1/images/{path}",
        "data": {"prompt": "a red circle", "steps": "2"} | (fields or {}),
        "files": files,
    }


def _json(url: str, **members: Any) -> dict[str, Any]:
    return {"url": url, "json": members}


def _prediction(**members: Any) -> dict[str, Any]:
    return {"url": "/v1/predictions", "json": {"input": TEXT | members}, "headers": {"prefer": "wait"}}


def _without_a_picture() -> Iterator[dict[str, Any]]:
    yield _json("/v1/images/generations", **TEXT)
    yield _prediction()
    yield _json("/sdapi/v1/txt2img", **TEXT)
    yield _json("/hf/text-to-image", inputs="a red circle", parameters={"steps": 2})
    yield _json("/v1/flux-dev", **TEXT)


def _with_a_picture(image: bytes) -> Iterator[dict[str, Any]]:
    yield _edit(image=image)
    yield _prediction(image=_uri(image))
    yield _prediction(input_image=_uri(image), aspect_ratio="match_input_image")
    yield _json("/sdapi/v1/img2img", **TEXT, init_images=[_uri(image)])
    yield _json("/hf/image-to-image", inputs=_uri(image), parameters=TEXT)
    yield _json("/v1/flux-kontext-pro", **TEXT, input_image=_uri(image))


def _with_a_mask(mask: bytes = MASK) -> Iterator[dict[str, Any]]:
    yield _edit(image=IMAGE, mask=mask)
    yield _prediction(image=_uri(IMAGE), mask=_uri(mask))
    yield _json("/sdapi/v1/img2img", **TEXT, init_images=[_uri(IMAGE)], mask=_uri(mask))
    yield _json("/v1/flux-pro-1.0-fill", **TEXT, image=_uri(IMAGE), mask=_uri(mask))


def _with_a_strength() -> Iterator[dict[str, Any]]:
    yield _edit(fields={"strength": "0.5"}, image=IMAGE)
    yield _prediction(image=_uri(IMAGE), prompt_strength=0.5)
    yield _json("/hf/image-to-image", inputs=_uri(IMAGE), parameters=TEXT | {"strength": 0.5})


def _with_a_strength_that_nobody_asked_for() -> Iterator[dict[str, Any]]:
    """``webuiapi`` and its like send 0.75 with every picture."""
    yield _json("/sdapi/v1/img2img", **TEXT, init_images=[_uri(IMAGE)], denoising_strength=0.75)


async def _refused(client: httpx.AsyncClient, asked: Iterator[dict[str, Any]], sentence: str) -> None:
    for request in asked:
        answer = await client.post(**request)
        assert (answer.status_code, sentence in answer.text) == (400, True), (request["url"], answer.text)


async def _drawn(client: httpx.AsyncClient, asked: Iterator[dict[str, Any]]) -> None:
    for request in asked:
        answer = await client.post(**request)
        assert answer.status_code in (200, 201), (request["url"], answer.text)


async def test_kontext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, Family.KONTEXT, reference_sizes=((64, 64), (48, 96), (96, 48)))
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        await _drawn(client, _without_a_picture())
        await _drawn(client, _with_a_picture(WIDE))
        offer = "it can draw from a prompt alone, or edit a picture as the prompt says, without mask and strength"
        await _refused(client, _with_a_mask(), f"cannot draw anew what a mask marks in a picture: {offer}")
        await _refused(client, _with_a_mask(b"no picture, but nobody looked"), "cannot draw anew what a mask marks")
        await _refused(client, _with_a_strength(), f"strength: {offer}")
        await _drawn(client, _with_a_strength_that_nobody_asked_for())
        variation = _edit("variations", image=IMAGE)
        await _refused(client, iter([variation]), f"cannot change a whole picture by a strength: {offer}")
        await _refused(client, iter([_edit(fields={"prompt": " "}, image=IMAGE)]), "prompt is required")
        await _refused(client, iter([_json("/hf/image-to-image", inputs=_uri(IMAGE))]), "prompt is empty")
        assert front.queue.work == 0


async def test_what_kontext_looks_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its own shape, whatever is drawn; unless something is asked, that has the same."""
    _serve(monkeypatch, Family.KONTEXT, reference_sizes=((64, 64), (48, 96), (96, 48)))
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        answer = (await client.post(**_edit(image=WIDE))).json()
        assert (answer["size"], answer["params"]["source"]["reference_size"]) == ("96x48", [96, 48])
        assert answer["usage"]["input_tokens_details"]["image_tokens"] == 6 * 3
        answer = (await client.post(**_edit(fields={"size": "64x128"}, image=WIDE))).json()
        assert (answer["size"], answer["params"]["source"]["reference_size"]) == ("64x128", [96, 48])
        data = (await client.post(**_edit(image=CLEAR, fields={"seed": "1"}))).json()["data"][0]["b64_json"]
        seen = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        assert np.asarray(seen).min() >= 127  # half of it is white, not the blue that nobody saw


async def test_fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, Family.FILL)
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        await _drawn(client, _with_a_mask())
        await _drawn(client, _with_a_picture(CLEAR))
        answer = (await client.post(**_edit(image=IMAGE, mask=MASK))).json()
        assert (answer["params"]["guidance_scale"], answer["params"]["source"]["strength"]) == (30.0, 1.0)
        offer = "it can draw anew what a mask marks in a picture"
        await _refused(client, _without_a_picture(), f"cannot draw from a prompt alone: {offer}")
        await _refused(client, _with_a_picture(IMAGE), f"cannot change a whole picture by a strength: {offer}")
        for asked in (_with_a_strength(), _with_a_strength_that_nobody_asked_for()):
            await _refused(client, asked, f"cannot change a whole picture by a strength: {offer}")
        variation = _edit("variations", image=IMAGE, mask=MASK)
        await _refused(client, iter([variation]), f"cannot change a whole picture by a strength: {offer}")
        negative = _edit(fields={"negative_prompt": "a square"}, image=IMAGE, mask=MASK)
        await _refused(client, iter([negative]), "has no negative_prompt: its guidance is guidance_scale")
        assert front.queue.work == 0


async def test_schnell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exceeds it is refused; but AUTOMATIC1111's clients send the defaults of other models."""
    _serve(monkeypatch, Family.SCHNELL, max_sequence_length=256)
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        answer = (await client.post("/v1/images/generations", json={"prompt": "a"})).json()["params"]
        told = answer["num_inference_steps"], answer["guidance_scale"], answer["max_sequence_length"]
        assert told == (4, None, 256)
        for name, value, sentence in (
            ("num_inference_steps", 13, "takes 12 at most"),
            ("max_sequence_length", 257, "takes 256 at most"),
            ("guidance_scale", 3.5, "has no guidance_scale"),
        ):
            members = {"prompt": "a", name: value}
            asked = [
                _json("/v1/images/generations", **members),
                _edit(fields={"steps": ""} | {name: str(value)}, image=IMAGE),
                {"url": "/v1/predictions", "json": {"input": members}},
                _json("/hf/text-to-image", inputs="a", parameters={name: value}),
                _json("/v1/flux-schnell", **members),
            ]
            del asked[1]["data"]["steps"]
            await _refused(client, iter(asked), sentence)
        brought = await client.post("/sdapi/v1/txt2img", json={"prompt": "a", "steps": 50, "distilled_cfg_scale": 3.5})
        assert msgspec.json.decode(brought.json()["info"])["steps"] == 12


async def test_a_mask_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut to one size, it would mark another place than the one that was meant."""
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        other = _file((64, 32), colour=255, mode="L")
        await _refused(client, _with_a_mask(other), "mask is 64x32, the image 64x64: they must have one shape")
        await _drawn(client, _with_a_mask(_file((128, 128), colour=255, mode="L")))


async def test_pictures_that_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        two = {"image": _uri(IMAGE), "input_image": _uri(IMAGE)}
        both = [_prediction(**two), _json("/v1/flux-kontext-max", **TEXT, **two)]
        await _refused(client, iter(both), "were both given: give one of them")
        none = [
            _prediction(mask=_uri(MASK)),
            _json("/v1/flux-pro-1.0-fill", **TEXT, mask=_uri(MASK)),
        ]
        await _refused(client, iter(none), "image")
