"""LoRA adapters over HTTP: listed, asked for by every API, refused before a job is made of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from safelight.config import EMBEDDED_MODEL, STUB_MODEL
from safelight.errors import InvalidValue
from safelight.lora.layers import Size
from safelight.metadata import parameters_text
from safelight.params import MAX_LORAS, LoraUse, MetadataLevel, parse_lora
from safelight.server.front import Front
from safelight.server.prompt_tags import split_prompt
from tests.unit.adapter_headers import pair, write_header
from tests.unit.running_front import make_front, params, running_front, serving
from tests.unit.stub_front import stub_server

pytestmark = pytest.mark.anyio

QUERY = "transformer_blocks.0.attn.to_q"
PASTEL = [{"name": "pastel", "scale": 0.5}]
USED = (LoraUse("pastel", 0.5),)
IMAGES = "/v1/images/generations"


def _put(folder: Path) -> None:
    loras = folder / "data" / "loras"
    write_header(loras / "Mine (v2).safetensors", pair(QUERY, Size(192, 192), rank=8))
    write_header(loras / "for FLUX.safetensors", pair(QUERY, Size(3072, 3072)))
    (loras / "empty.safetensors").touch()


async def test_the_list_tells_what_fits_and_why_the_others_do_not(tmp_path: Path) -> None:
    front = make_front(tmp_path, model=EMBEDDED_MODEL)
    _put(tmp_path)
    await front.model.refresh()
    async with serving(front) as client:
        answer = (await client.get("/v1/loras")).json()
        assert answer["object"] == "list"
        assert [(entry["name"], entry["fits"]) for entry in answer["data"]] == [
            ("empty", False),
            ("for FLUX", False),
            ("Mine (v2)", True),
            ("pastel", True),
        ]
        empty, other, mine, pastel = answer["data"]
        assert "truncated" in empty["reason"]
        assert "is 3072 x 3072, this model's is 192 x 192" in other["reason"]
        assert (mine["rank"], mine["layers"], mine["text_encoder_layers"], mine["reason"]) == (8, 1, 0, None)
        assert pastel["bytes"] < 400_000
        assert str(tmp_path) not in json.dumps(answer)
        found = (await client.get("/sdapi/v1/loras")).json()
        assert [entry["name"] for entry in found] == ["Mine (v2)", "pastel"]


async def test_without_a_model_there_is_nothing_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_front(tmp_path, model=str(tmp_path / "nowhere")) as front, serving(front) as client:
        assert (await client.get("/v1/loras")).json()["data"] == []


async def test_a_model_that_takes_none_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (front, client):
        write_header(front.config.adapters_dir / "x.safetensors", pair(QUERY, Size(192, 192)))
        (entry,) = (await client.get("/v1/loras")).json()["data"]
        assert (entry["fits"], entry["reason"]) == (False, f"{STUB_MODEL} takes no LoRA adapters")
        answer = await client.post(IMAGES, json={"prompt": "a", "loras": [{"name": "x"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_value")


def _job_count(front: Front) -> int:
    return len(list(front.ledger))


REFUSED: dict[str, tuple[Any, str, str]] = {
    "unknown": ([{"name": "nobody"}], "invalid_value", "there is no LoRA adapter 'nobody'"),
    "another model's": ([{"name": "for FLUX"}], "lora_invalid", "0 of its 1 layers fit this one"),
    "empty": ([{"name": "empty"}], "lora_invalid", "truncated"),
    "one of two": ([*PASTEL, {"name": "empty"}], "lora_invalid", "truncated"),
    "a path": ([{"name": "../../loras/pastel"}], "invalid_value", "is no name of a LoRA adapter"),
    "twice": ([*PASTEL, {"name": "pastel"}], "invalid_value", "was asked for twice"),
    "too strong": ([{"name": "pastel", "scale": 11}], "invalid_value", "scale"),
    "too many": ([{"name": f"x{number}"} for number in range(MAX_LORAS + 1)], "invalid_value", "loras"),
    "no name": ([{"scale": 1}], "missing_required_parameter", "name"),
    "another member": ([{"name": "pastel", "path": "/etc"}], "unknown_parameter", "path"),
    "text": ("pastel", "invalid_value", "loras"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_cannot_be_used_is_refused_before_a_job_is_made(kind: str, tmp_path: Path) -> None:
    loras, code, sentence = REFUSED[kind]
    front = make_front(tmp_path, model=EMBEDDED_MODEL)
    _put(tmp_path)
    await front.model.refresh()
    async with serving(front) as client:
        answer = await client.post(IMAGES, json={"prompt": "a", "loras": loras})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, code), error
        assert sentence in error["message"]
        assert error["param"].startswith("loras")
        assert _job_count(front) == 0


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


async def _edit(client: httpx.AsyncClient, path: str, **fields: str) -> httpx.Response:
    return await client.post(f"/v1/images/{path}", data={"prompt": "a"} | fields, files={"image": _picture()})


async def test_every_api_takes_them(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(_picture()).decode()
    text = "a <lora:pastel:0.5> cat"
    async with running_front(tmp_path, model=EMBEDDED_MODEL) as front, serving(front) as client:
        asked = [
            await client.post(IMAGES, json={"prompt": "a", "loras": PASTEL}),
            await client.post("/v1/predictions", json={"input": {"prompt": "a", "loras": PASTEL}}),
            await client.post("/", json={"inputs": "a", "parameters": {"loras": PASTEL}}),
            await client.post("/v1/flux-dev", json={"prompt": "a", "loras": PASTEL}),
            await client.post("/sdapi/v1/txt2img", json={"prompt": text}),
            await client.post("/sdapi/v1/img2img", json={"prompt": text, "init_images": [uri]}),
            await _edit(client, "edits", loras=json.dumps(PASTEL)),
            await _edit(client, "variations", loras=json.dumps(PASTEL)),
        ]
        assert [answer.status_code for answer in asked] == [200, 201, 200, 200, 200, 200, 200, 200]
        jobs = (await client.get("/v1/predictions")).json()["results"]
        assert len(jobs) == len(asked)
        assert all(job["params"]["loras"] == PASTEL for job in jobs), jobs
        assert {job["params"]["prompt"] for job in jobs} == {"a", "a cat"}
        assert json.loads(asked[4].json()["info"])["prompt"] == "a cat <lora:pastel:0.5>"
        assert jobs[-2]["input"]["loras"] == PASTEL
        spoiled = await _edit(client, "edits", loras="pastel")
        assert (spoiled.status_code, spoiled.json()["error"]["param"]) == (400, "loras")
        many = " ".join(f"<lora:x{number}>" for number in range(MAX_LORAS + 1))
        assert (await client.post("/sdapi/v1/txt2img", json={"prompt": f"a {many}"})).status_code == 400


# --- words --------------------------------------------------------------------------------------------------------


def test_tags_leave_the_prompt() -> None:
    assert split_prompt("a <lora:b c:0.5> cat <lora:d>, <lora:e:-1:0.2>") == (
        "a cat ,",
        [LoraUse("b c", 0.5), LoraUse("d"), LoraUse("e", -1.0)],
    )
    assert split_prompt("1 < 2:  <b>") == ("1 < 2:  <b>", [])
    with pytest.raises(InvalidValue, match="'loud' is no scale"):
        split_prompt("<lora:a:loud>")


def test_a_scale_follows_a_name() -> None:
    assert parse_lora("a") == LoraUse("a", 1.0)
    assert parse_lora("a (v2.1):-0.5") == LoraUse("a (v2.1)", -0.5)


def test_a_picture_tells_its_adapters() -> None:
    made = params(loras=(*USED, LoraUse("b")))
    assert parameters_text(made, 1, "m").startswith("a red circle <lora:pastel:0.5> <lora:b:1>\n")
    assert "LoRA: pastel:0.5; b:1" in parameters_text(made, 1, "m", MetadataLevel.MINIMAL)
    assert "LoRA" not in parameters_text(params(), 1, "m", MetadataLevel.MINIMAL)
