"""Every API with two models: which one a request means, how they are listed, and who may say what is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.model_list import ModelEntry
from safelight.server.front import Front
from safelight.setting_values import ApiKey
from tests.unit.fake_checkpoint import CARD, write_checkpoint
from tests.unit.running_front import running_front, serving, until, until_ready

pytestmark = pytest.mark.anyio

KEYS = {name: f"{name}-key-of-some-length" for name in ("user", "admin")}


def _settings(folder: Path) -> dict[str, Any]:
    write_checkpoint(folder / "a", card=CARD | {"id": "test/a", "title": "A"})
    write_checkpoint(folder / "b", card=CARD | {"id": "test/b", "title": "B", "max_num_inference_steps": 8})
    entries = (ModelEntry(model=str(folder / "a")), ModelEntry(model=str(folder / "b"), name="own/b"))
    return {"models": entries, "model": entries[0].model, "switch_overlap": "always"}


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running_front(tmp_path, "names_its_model", **_settings(tmp_path)) as front:
        await until_ready(front)
        yield front


@pytest.fixture
async def client(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(front) as client:
        yield client


def _b64(answer: httpx.Response) -> bytes:
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def test_openais_images_are_drawn_by_the_model_that_is_named(client: httpx.AsyncClient) -> None:
    for name, model in ((None, "a"), ("test/a", "a"), ("own/b", "b"), ("test/b", "b"), ("gpt-image-1", "a")):
        answer = await client.post("/v1/images/generations", json={"prompt": "p", **({"model": name} if name else {})})
        assert _b64(answer).decode() == f"{model}: p"
    answer = await client.post("/v1/images/generations", json={"prompt": "p", "model": "no/such"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "'test/a', 'own/b' are" in answer.json()["error"]["message"]


async def test_each_models_own_card_checks_what_is_asked(client: httpx.AsyncClient) -> None:
    body = {"prompt": "p", "num_inference_steps": 9}
    assert (await client.post("/v1/images/generations", json=body)).status_code == 200
    answer = await client.post("/v1/images/generations", json=body | {"model": "own/b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "num_inference_steps")


async def test_a_job_names_its_model_in_its_path_or_body(client: httpx.AsyncClient) -> None:
    headers, asked = {"prefer": "wait=10"}, {"input": {"prompt": "p"}}
    made = {
        "own/b": await client.post("/v1/models/own/b/predictions", json=asked, headers=headers),
        "test/a": await client.post("/v1/predictions", json=asked, headers=headers),
    }
    for path in ("/v1/predictions", "/predictions"):
        for member in ("model", "version"):
            body = asked | {member: "own/b"}
            made["own/b"] = await client.post(path, json=body, headers=headers)
            for name, answer in made.items():
                shown = answer.json()
                assert (answer.status_code, shown["status"], shown["model"]) == (201, "succeeded", name)
    answer = await client.post("/v1/models/own/b/predictions", json=asked | {"model": "test/a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert "'own/b' and 'test/a' are different models" in answer.json()["detail"]


async def test_hugging_faces_path_names_the_model(client: httpx.AsyncClient) -> None:
    for path, model in (("/models/own/b", "b"), ("/models/test/a", "a"), ("/hf/text-to-image", "a"), ("/", "a")):
        assert (await client.post(path, json={"inputs": "p"})).content.decode() == f"{model}: p"
    assert (await client.post("/models/no/such", json={"inputs": "p"})).status_code == 404


async def test_webui_clients_choose_a_model_for_themselves_or_for_one_request(client: httpx.AsyncClient) -> None:
    assert [model["title"] for model in (await client.get("/sdapi/v1/sd-models")).json()] == ["test/a", "own/b"]
    me, other = {"x-key": "me"}, {"x-key": "other"}

    async def drawn_by(headers: dict[str, str], **members: Any) -> str:
        answer = await client.post("/sdapi/v1/txt2img", json={"prompt": "p"} | members, headers=headers)
        return base64.b64decode(answer.json()["images"][0]).decode().partition(":")[0]

    assert (
        await client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "own/b"}, headers=me)
    ).status_code == 200
    for headers, model, name in ((me, "b", "own/b"), (other, "a", "test/a")):
        assert await drawn_by(headers) == model
        assert (await client.get("/sdapi/v1/options", headers=headers)).json()["sd_model_checkpoint"] == name
    assert await drawn_by(me, override_settings={"sd_model_checkpoint": "test/a"}) == "a"
    answer = await client.post(
        "/sdapi/v1/txt2img", json={"prompt": "p", "override_settings": {"sd_model_checkpoint": "x"}}
    )
    assert answer.status_code == 404


async def test_bfls_paths_mean_a_model_of_that_name_or_the_default(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    first, second = settings["models"]
    named = ModelEntry(model=second.model, name="flux-schnell")
    settings |= {"models": (first, named)}
    async with running_front(tmp_path, "names_its_model", **settings) as front, serving(front) as client:
        for path, name in (("flux-schnell", "flux-schnell"), ("flux-dev", "test/a")):
            made = (await client.post(f"/v1/{path}", json={"prompt": "p"})).json()
            assert (await client.get(f"/v1/predictions/{made['id']}")).json()["model"] == name


async def test_all_models_are_listed_with_how_they_stand(front: Front, client: httpx.AsyncClient) -> None:
    first, second = (await client.get("/v1/models")).json()["data"]
    for entry, expected in (
        (first, ("test/a", "A", "ready", ["cpu"], False, None)),
        (second, ("own/b", "B", "unloaded", [], False, None)),
    ):
        assert tuple(entry[name] for name in ("id", "title", "state", "loaded_on", "pinned", "error")) == expected
    assert (await client.get("/v1/models/own%2Fb")).json() == second
    status = (await client.get("/v1/status")).json()
    assert [entry["id"] for entry in status["models"]] == ["test/a", "own/b"]
    assert (status["workers"][0]["model"], status["workers"][0]["coming"]) == ("test/a", None)


async def test_each_model_has_a_readiness_of_its_own(front: Front, client: httpx.AsyncClient) -> None:
    async def ready(name: str) -> list[int]:
        paths = (f"/v1/models/{name}/ready", f"/v2/models/{name}/ready")
        return [(await client.get(path)).status_code for path in paths]

    assert (await ready("test/a"), await ready("own/b"), await ready("x")) == ([200] * 2, [503] * 2, [404] * 2)
    answer = await client.post("/v1/models/own/b/load")
    assert (answer.status_code, answer.json()["workers"][0]["state"]) == (202, "ready")
    await until(front.changes, lambda: front.is_model_ready(front.models.find("own/b")))
    assert (await ready("test/a"), await ready("own/b")) == ([503] * 2, [200] * 2)
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.post("/v1/models/own/b/unload")).status_code == 202
    await until(front.changes, lambda: front.workers[0].current is None)
    assert (await ready("own/b"), (await client.get("/readyz")).status_code) == ([503] * 2, 200)


async def test_a_pinned_model_is_said_to_be_and_cannot_be_unloaded(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/models/test/a/pin")
    assert (answer.status_code, answer.json()["models"][0]["pinned"]) == (202, True)
    answer = await client.post("/v1/models/test/a/unload")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
    answer = await client.post("/v1/images/generations", json={"prompt": "p", "model": "own/b"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_load_failed")
    answer = await client.post("/v1/models/test/a/unpin")
    assert (answer.status_code, answer.json()["models"][0]["pinned"]) == (202, False)


async def test_only_admins_say_what_is_loaded(tmp_path: Path) -> None:
    keys = {f"{name}_keys": (ApiKey(name, _sha256(KEYS[name])),) for name in ("admin",)}
    settings = _settings(tmp_path) | keys | {"api_keys": (ApiKey("user", _sha256(KEYS["user"])),)}
    async with running_front(tmp_path, "names_its_model", **settings) as front, serving(front) as client:
        for order in ("load", "unload", "pin", "unpin"):
            statuses = [
                (
                    await client.post(f"/v1/models/own/b/{order}", headers={"authorization": f"Bearer {KEYS[who]}"})
                ).status_code
                for who in ("user", "admin")
            ]
            assert statuses == [403, 202], order


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def test_the_schema_has_the_limits_that_all_models_share(front: Front, client: httpx.AsyncClient) -> None:
    members = (await client.get("/openapi.json")).json()["components"]["schemas"]["ImagesRequest"]["properties"]

    def limits(name: str) -> dict[str, Any]:
        return next(kind for kind in members[name]["anyOf"] if kind["type"] != "null")

    assert limits("width")["maximum"] == 512
    assert "maximum" not in limits("num_inference_steps")


async def test_metrics_tell_of_each_model(front: Front, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await client.post("/v1/images/generations", json={"prompt": "p", "model": "own/b"})
    page = (await client.get("/metrics")).text
    for line in (
        f'safelight_model_workers{{model="{tmp_path / "a"}"}} 0.0',
        'safelight_model_workers{model="own/b"} 1.0',
        'safelight_model_requests_waiting{model="own/b"} 0.0',
        'safelight_model_switches_total{result="done"} 1.0',
    ):
        assert line in page
    assert page.count("safelight_build_info{") == 2


async def test_names_that_clients_hard_code_are_listed_beside_the_default_if_asked(tmp_path: Path) -> None:
    async with (
        running_front(tmp_path, "names_its_model", **_settings(tmp_path), model_aliases="list") as front,
        serving(front) as client,
    ):
        listed = (await client.get("/v1/models")).json()["data"]
        assert [entry["id"] for entry in listed] == ["test/a", "gpt-image-1", "dall-e-3", "own/b"]
        assert [entry.get("alias_of") for entry in listed] == [None, "test/a", "test/a", None]
        assert (await client.get("/v1/models/dall-e-3")).json()["id"] == "dall-e-3"
        assert (await client.post("/v1/models/dall-e-3/unload")).status_code == 404
