"""The thin APIs: Hugging Face, AUTOMATIC1111, Black Forest Labs, KServe, signed links."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.jobs import JobStatus
from safelight.server.app import APIS, create_app
from safelight.server.front import Front
from safelight.server.links import PictureLinks
from tests.unit.running_front import TIMEOUT_S, ended, make_front, running_front, serving, submit, until

pytestmark = pytest.mark.anyio


def _path(url: str, client: httpx.AsyncClient) -> str:
    assert url.startswith(str(client.base_url).rstrip("/"))
    return url


# --- signed links -------------------------------------------------------------------------------------------------


async def test_a_link_works_without_a_key_until_it_expires(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        done = await ended(front, await submit(front, owner="somebody"))
        path = front.links.path(done.id, 0)
        answer = await client.get(path)
        assert (answer.content, answer.headers["content-type"]) == (b"a red circle 1", "image/png")
        expired = PictureLinks(front.config.data_dir, -10)
        wrong = [
            expired.path(done.id, 0),
            path[:-1] + ("0" if path[-1] != "0" else "1"),
            path.replace("/0?", "/1?"),
            path.replace("expires=", "expires=9"),
            path.partition("?")[0],
            path.replace(done.id, "job_" + "0" * 32),
            path + "é",
        ]
        for link in wrong:
            assert (await client.get(link)).status_code == 404, link


async def test_links_outlive_a_restart_and_their_key_is_private(tmp_path: Path) -> None:
    first, second = PictureLinks(tmp_path, 60), PictureLinks(tmp_path, 60)
    expires_s = int(time.time() + 60)
    assert first._sign("job_1", 0, expires_s) == second._sign("job_1", 0, expires_s)
    assert (tmp_path / "link-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"response_format": "url"}, "url"),
        ({"model": "dall-e-3"}, "url"),
        ({"model": "dall-e-3", "response_format": "b64_json"}, "b64_json"),
        ({"model": "gpt-image-1"}, "b64_json"),
        ({}, "b64_json"),
    ],
)
async def test_openais_clients_get_what_they_expect(
    body: dict[str, Any], member: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post("/v1/images/generations", json={"prompt": "a", "seed": 4, "n": 2} | body)
        entries = answer.json()["data"]
        assert [sorted(entry) for entry in entries] == [sorted([member, "seed"])] * 2
        if member == "url":
            pictures = [(await client.get(_path(entry["url"], client))).content for entry in entries]
        else:
            pictures = [base64.b64decode(entry["b64_json"]) for entry in entries]
        assert pictures == [b"a 4", b"a 5"]


# --- Hugging Face -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/hf/text-to-image", "/models/test/tiny"])
async def test_hugging_face_json_in_picture_out(path: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        parameters = {"seed": 3, "num_inference_steps": 2, "width": 128, "height": 64, "scheduler": "euler"}
        answer = await client.post(
            path, json={"inputs": "a cat", "parameters": parameters}, headers={"accept": "image/webp"}
        )
        assert (answer.status_code, answer.content) == (200, b"a cat 3")
        assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/webp", "3")
        assert (await client.post(path, json={"inputs": "a cat"})).headers["content-type"] == "image/png"


async def test_hugging_faces_own_client_draws_and_reads_our_errors(tmp_path: Path, checkpoint_dir: Path) -> None:
    from huggingface_hub import InferenceClient

    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        hub = InferenceClient(base_url=str(client.base_url), timeout=TIMEOUT_S)
        with pytest.raises(Exception, match="width is 33"):
            await asyncio.to_thread(hub.text_to_image, "a cat", width=33, height=64)
        assert front.ledger.count(JobStatus.QUEUED) == 0


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/", {}, 400, "inputs is required"),
        ("/", {"inputs": "a", "parameters": {"width": 33}}, 400, "width is 33"),
        ("/models/other/model", {"inputs": "a"}, 404, "is not served here"),
    ],
)
async def test_hugging_faces_errors_are_text(
    path: str, body: dict[str, Any], status: int, sentence: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert sentence in answer.json()["error"]
        assert answer.headers["x-error-code"] and answer.headers["x-error-message"]


# --- AUTOMATIC1111 ------------------------------------------------------------------------------------------------

SD = "/sdapi/v1"


async def test_txt2img_with_what_its_clients_send_unasked(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        body = {
            "prompt": "a cat",
            "negative_prompt": "blurry",
            "steps": 1000,
            "cfg_scale": 7,
            "sampler_name": "Euler a",
            "scheduler": "automatic",
            "seed": 5,
            "width": 130,
            "height": 5000,
            "batch_size": 2,
            "url": "http://elsewhere",
            "override_settings": {},
        }
        answer = await client.post(f"{SD}/txt2img", json=body)
        assert answer.status_code == 200, answer.text
        assert [base64.b64decode(image) for image in answer.json()["images"]] == [b"a cat 5", b"a cat 6"]
        info = json.loads(answer.json()["info"])
        card = front.model.card
        assert (info["seed"], info["all_seeds"], info["steps"]) == (5, [5, 6], card.max_num_inference_steps)
        assert (info["width"], info["height"]) == (128, card.max_size)
        assert f"Size: 128x{card.max_size}" in info["infotexts"][0]
        assert answer.json()["parameters"]["prompt"] == "a cat"
        silent = await client.post(f"{SD}/txt2img", json={"prompt": "a", "send_images": False})
        assert silent.json()["images"] == []


@pytest.mark.parametrize(
    "name", ["samplers", "schedulers", "sd-models", "upscalers", "loras", "scripts", "embeddings", "memory"]
)
async def test_what_clients_ask_first(name: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        assert (await client.get(f"{SD}/{name}")).status_code == 200


async def test_options_are_taken_whole_and_an_unknown_model_changes_nothing(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        options = (await client.get(f"{SD}/options")).json()
        assert options["sd_model_checkpoint"] == "test/tiny"
        bodies: list[Any] = [options, {"samples_format": "jpg"}, {"sd_model_checkpoint": None}, []]
        for body in bodies:
            answer = await client.post(f"{SD}/options", json=body)
            assert (answer.status_code, answer.json()) == (200, None)
        for name, status in (("another", 200), (5, 400)):
            answer = await client.post(f"{SD}/options", json={"sd_model_checkpoint": name})
            assert (answer.status_code, "sd_model_checkpoint" in str(answer.json())) == (status, status == 400)
        assert (await client.get(f"{SD}/options")).json()["sd_model_checkpoint"] == "test/tiny"


async def test_progress_and_interrupt_are_the_callers_own(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        idle = (await client.get(f"{SD}/progress")).json()
        assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
        mine, other = {"x-key": "mine"}, {"x-key": "other"}
        asking = asyncio.create_task(client.post(f"{SD}/txt2img", json={"prompt": "a", "steps": 50}, headers=mine))
        await until(front.changes, lambda: any(job.step >= 2 for job in front.ledger))
        shown = (await client.get(f"{SD}/progress?skip_current_image=true", headers=mine)).json()
        assert 0 < shown["progress"] < 1 and shown["state"]["sampling_steps"] == 50
        assert (await client.get(f"{SD}/progress", headers=other)).json()["state"]["job_count"] == 0
        assert (await client.post(f"{SD}/interrupt", headers=other)).json() == {}
        assert front.ledger.count(JobStatus.RUNNING) == 1
        for _ in range(2):
            assert (await client.post(f"{SD}/interrupt", headers=mine)).status_code == 200
        answer = await asking
        assert (answer.status_code, sorted(answer.json())) == (499, ["body", "detail", "error", "errors"])


# --- Black Forest Labs --------------------------------------------------------------------------------------------


async def test_bfl_is_asked_and_asked_again(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        body = {"prompt": "a cat", "seed": 2, "width": 64, "height": 64, "aspect_ratio": "16:9", "safety_tolerance": 2}
        created = (await client.post("/v1/flux-dev", json=body, headers={"x-key": "mine"})).json()
        assert set(created) == {"id", "polling_url"}
        async with asyncio.timeout(TIMEOUT_S):
            while (shown := (await client.get(created["polling_url"], headers={"x-key": "mine"})).json())[
                "status"
            ] != "Ready":
                assert shown["status"] == "Pending"
                await asyncio.sleep(0.01)
        assert shown["result"]["seed"] == 2
        assert (await client.get(_path(shown["result"]["sample"], client))).content == b"a cat 2"
        other = await client.get(created["polling_url"], headers={"x-key": "other"})
        assert other.status_code == 404 and isinstance(other.json()["detail"], str)


async def test_a_bfl_job_that_does_not_end_well_is_exactly_error(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_the_job", model=str(checkpoint_dir)) as front, serving(front) as client:
        created = (await client.post("/v1/flux-pro-1.1", json={"prompt": "a"})).json()
        (job,) = front.ledger
        await ended(front, job)
        shown = (await client.get(created["polling_url"])).json()
        assert (shown["status"], shown["details"]["code"]) == ("Error", "out_of_memory")
        refused = await client.post("/v1/flux-dev", json={"prompt": "a", "input_image": "..."})
        assert refused.json()["error"]["param"] == "image"


# --- KServe and habits --------------------------------------------------------------------------------------------


async def test_kserve_metadata(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front, serving(front) as client:
        assert (await client.get("/v2")).json()["name"] == "safelight"
        assert (await client.get("/v2/models/test/tiny/ready")).status_code == 503
        await until(front.changes, lambda: front.is_ready)
        assert (await client.get("/v2/models/test/tiny/ready")).status_code == 200
        assert (await client.get("/v2/models/test/tiny")).json()["inputs"][0]["name"] == "prompt"
        assert (await client.get("/v2/models/other")).status_code == 404


async def test_plain_options_and_head(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        assert (await client.options("/v1/images/generations")).status_code == 204
        for path in ("/", "/livez", "/ping"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")


async def test_the_schema_names_every_operation_once(tmp_path: Path, checkpoint_dir: Path) -> None:
    front: Front = make_front(tmp_path, model=str(checkpoint_dir))
    transport = httpx.ASGITransport(create_app(front))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        schema = (await client.get("/openapi.json")).json()
    ids = [entry["operationId"] for path in schema["paths"].values() for entry in path.values()]
    assert len(ids) == len(set(ids)) >= 30
    assert len(APIS) == 13
