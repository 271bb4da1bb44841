"""Pictures that are changed, through every API that has a name for it; with the stub engine, whose blend is exact."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from tests.unit.stub_front import events, stub_server

pytestmark = pytest.mark.anyio

EDITS = "/v1/images/edits"
BLUE = (0, 0, 255)


def _png(colour: tuple[int, ...] = BLUE, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def _left_half() -> bytes:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def _read(data: bytes | str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True) if isinstance(data, str) else data)).convert(
        "RGB"
    )


def _is_kept(image: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return image.crop(box).getextrema() == ((0, 0), (0, 0), (255, 255))


FIELDS = {"prompt": "a red circle", "seed": "3", "size": "64x64", "num_inference_steps": "4"}


async def _edited(client: httpx.AsyncClient, fields: dict[str, str], **files: bytes) -> Image.Image:
    answer = await client.post(EDITS, data=FIELDS | fields, files=files)
    assert answer.status_code == 200, answer.text
    return _read(answer.json()["data"][0]["b64_json"])


async def test_strength_is_how_much_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        weak = await _edited(client, {"strength": "0.05"}, image=_png())
        strong = await _edited(client, {"strength": "1"}, image=_png())
        assert weak.resize((1, 1)).getpixel((0, 0))[2] > 235  # type: ignore[index]
        assert strong.resize((1, 1)).getpixel((0, 0))[2] < 200  # type: ignore[index]
        assert list((front.config.data_dir / "sources").iterdir()) == []


@pytest.mark.parametrize("name", ["image", "image[]"])
async def test_only_what_the_mask_names_changes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        image = await _edited(client, {}, **{name: _png(), "mask": _left_half()})
        assert _is_kept(image, (32, 0, 64, 64))
        assert not _is_kept(image, (0, 0, 32, 64))


async def test_an_edit_streams_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        fields = FIELDS | {"stream": "true", "partial_images": "1", "strength": "1"}
        told = events((await client.post(EDITS, data=fields, files={"image": _png()})).text)
        assert [event["event"] for event in told] == ["image_edit.partial_image", "image_edit.completed"]


async def test_a_variation_needs_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        fields = {"n": "2", "response_format": "b64_json", "model": "dall-e-2"}
        answer = await client.post("/v1/images/variations", data=fields, files={"image": _png(size=(100, 50))})
        images = [_read(entry["b64_json"]) for entry in answer.json()["data"]]
        assert len(images) == 2 and {image.size for image in images} == {(96, 48)}


@pytest.mark.parametrize(
    ("fields", "files", "param", "status"),
    [
        ({}, {}, "image", 400),
        ({"prompt": " "}, {"image": _png()}, "prompt", 400),
        ({"strength": "0"}, {"image": _png()}, "strength", 400),
        ({"strength": "1.01"}, {"image": _png()}, "strength", 400),
        ({"strength": "nan"}, {"image": _png()}, "strength", 400),
        ({"n": "0"}, {"image": _png()}, "n", 400),
        ({"n": "x"}, {"image": _png()}, "n", 400),
        ({"colour": "red"}, {"image": _png()}, "colour", 400),
        ({"size": "17x17"}, {"image": _png()}, "size", 400),
        ({"background": "transparent"}, {"image": _png()}, "background", 400),
        ({}, {"image": b"text"}, "image", 400),
        ({}, {"image": _png(), "mask": b"text"}, "mask", 400),
        ({}, {"image": _png(), "prompt": b"x"}, "prompt", 400),
        ({"model": "no/such"}, {"image": _png()}, "model", 404),
    ],
)
async def test_what_is_wrong_is_named(
    fields: dict[str, str],
    files: dict[str, bytes],
    param: str,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        sent: dict[str, Any] = {"data": FIELDS | fields, "files": files}
        if not files:
            sent = {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}
        answer = await client.post(EDITS, **sent)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        assert list((front.config.data_dir / "sources").iterdir()) == []


async def test_two_pictures_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        files = [("image[]", _png()), ("image[]", _png())]
        answer = await client.post(EDITS, data=FIELDS, files=files)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_value")


async def test_json_is_not_a_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        assert (await client.post(EDITS, json=FIELDS)).status_code == 415


async def test_img2img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        body: dict[str, Any] = {
            "prompt": "a",
            "steps": 4,
            "init_images": ["data:image/png;base64," + base64.b64encode(_png()).decode()],
            "mask": base64.b64encode(_left_half()).decode(),
            "denoising_strength": 0.9,
        }
        kept = {0: (32, 0, 64, 64), 1: (0, 0, 32, 64)}
        for inverted, box in kept.items():
            answer = await client.post("/sdapi/v1/img2img", json=body | {"inpainting_mask_invert": inverted})
            assert _is_kept(_read(answer.json()["images"][0]), box)
        assert (await client.post("/sdapi/v1/img2img", json=body | {"init_images": []})).status_code == 400


async def test_a_prediction_with_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        asked = {
            "prompt": "a",
            "steps": 4,
            "image": "data:image/png;base64," + base64.b64encode(_png()).decode(),
            "mask": "data:image/png;base64," + base64.b64encode(_left_half()).decode(),
        }
        made = (await client.post("/v1/predictions", json={"input": asked}, headers={"prefer": "wait"})).json()
        assert made["status"] == "succeeded"
        assert len(made["input"]["image"]) < 100
        assert _is_kept(_read((await client.get(made["output"][0])).content), (32, 0, 64, 64))
        wrong: list[dict[str, Any]] = [
            {"image": "https://example.org/a.png"},
            {"image": "data:text/plain;base64,YWJj"},
            {"mask": asked["mask"]},
            {"prompt_strength": 0.5},
        ]
        for members in wrong:
            answer = await client.post("/v1/predictions", json={"input": {"prompt": "a"} | members})
            assert answer.status_code == 400, members


async def test_hugging_faces_image_to_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        encoded = base64.b64encode(_png()).decode()
        weak = {"prompt": "a", "strength": 0.05, "target_size": {"width": 96, "height": 64}}
        answer = await client.post("/", json={"inputs": encoded, "parameters": weak})
        assert _read(answer.content).size == (96, 64)
        assert _read(answer.content).resize((1, 1)).getpixel((0, 0))[2] > 235  # type: ignore[index]
        raw = await client.post("/hf/image-to-image", content=_png())
        assert (raw.status_code, _read(raw.content).size) == (200, (64, 64))


async def test_an_edit_outlives_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"prompt": "a", "steps": 100, "image": "data:image/png;base64," + base64.b64encode(_png()).decode()}
    async with stub_server(tmp_path, monkeypatch, step_s=0.05) as (front, client):
        made = (await client.post("/v1/predictions", json={"input": asked})).json()
        assert len(list((front.config.data_dir / "sources").iterdir())) == 1
        (front.config.data_dir / "sources" / "stray.png").write_bytes(b"")
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        path = f"/v1/predictions/{made['id']}"
        while (shown := (await client.get(path)).json())["status"] in ("starting", "processing"):
            await front.changes.wait(0.1)
        assert shown["status"] == "succeeded"
        assert list((front.config.data_dir / "sources").iterdir()) == []
