"""``POST /v1/images/generations``: what is drawn, and every way to ask wrongly, refused before any work."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.jobs import Job, JobRequest
from safelight.params import MAX_IMAGES, MAX_SEED, GenerationParams
from safelight.server.app import create_app
from safelight.server.database import IdempotencyKey
from safelight.server.front import Front
from safelight.server.images import ImagesRequest
from tests.unit.running_front import make_front, running_front, serving

pytestmark = pytest.mark.anyio

URL = "/v1/images/generations"
PROMPT = "a red circle"


class Refusals:
    """The whole app over a front that knows its model but whose dispatcher must never be asked."""

    def __init__(self, front: Front) -> None:
        self.submitted: list[GenerationParams] = []
        self._app = create_app(front)
        front.dispatcher.submit = self._submit  # type: ignore[method-assign]

    async def _submit(
        self,
        request: JobRequest,
        idempotency: IdempotencyKey | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Job:
        self.submitted.append(request.params)
        raise AssertionError("a job was submitted")

    async def post(
        self, content: bytes | AsyncIterator[bytes], headers: dict[str, str] | None = None, path: str = URL
    ) -> httpx.Response:
        self.submitted.clear()
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(
                path, content=content, headers={"content-type": "application/json"} | (headers or {})
            )


@pytest.fixture(scope="module")
def refusals(checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    front = make_front(tmp_path_factory.mktemp("front"), model=str(checkpoint_dir))
    asyncio.run(front.model.refresh())
    return Refusals(front)


def _assert_problem(answer: httpx.Response, status: int, code: str, param: str | None, path: str = URL) -> None:
    """The merged body of OpenAI's envelope and RFC 9457."""
    body = answer.json()
    assert (answer.status_code, body["error"]["code"], body["error"]["param"]) == (status, code, param), body
    assert set(body) == {"type", "title", "status", "detail", "instance", "error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert body["type"] == f"urn:safelight:error:{code}"
    assert body["status"] == status
    assert isinstance(body["detail"], str)
    assert body["detail"] == body["error"]["message"]
    assert "\n" not in body["detail"]
    request_id = answer.headers["x-request-id"]
    assert body["instance"] == f"{path}#{request_id}"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert "Traceback" not in answer.text


# --- members ------------------------------------------------------------------------------------------------------

WRONG_MEMBERS: list[tuple[str, str, str, str]] = [
    # (member, its JSON text, code, param)
    *(
        ("n", text, "invalid_value", "n")
        for text in ("0", "-1", "1.5", '"7"', "true", "1000000000", "[1]", "NaN", "11")
    ),
    *(
        ("size", text, "invalid_size", "size")
        for text in (
            *(
                '"0x0"',
                '"1x1"',
                '"1024X1024"',
                '"\uff11\uff10\uff12\uff14x1024"',
                '"99999x99999"',
                '"1e3x1e3"',
                '"33x47"',
            ),
            *('""', '"64"', '"64x"', '"-64x64"', '"64x64 "', '"AUTO"', '"64x64x64"', '"0x40x0x40"', '"64x64\\n"'),
        )
    ),
    *(("size", text, "invalid_value", "size") for text in ("64", "[64, 64]", '{"width": 64}', "true")),
    ("size", '"16x64"', "invalid_size", "width"),
    ("size", '"64x1024"', "invalid_size", "height"),
    *(("width", text, "invalid_size", "width") for text in ("0", "-64", "33", "8208", "1024", "1" + "0" * 400)),
    *(("height", text, "invalid_value", "height") for text in ("64.5", '"64"', "true", "1e-2")),
    *(
        ("seed", text, "invalid_value", "seed")
        for text in ("-1", str(2**63), "1.5", '"7"', "true", "NaN", "1e30", str(2**64), "1" + "0" * 400)
    ),
    *(
        ("num_inference_steps", text, "invalid_value", "num_inference_steps")
        for text in ("0", "-1", "51", "201", "4.5", '"4"', "true", "1" + "0" * 400)
    ),
    ("steps", "true", "invalid_value", "steps"),
    ("steps", '"4"', "invalid_value", "steps"),
    *(
        ("guidance_scale", text, "invalid_value", "guidance_scale")
        for text in ("NaN", '"3.5"', "true", "-1", "-0.1", "1e999", "Infinity", "-Infinity", "31", "1" + "0" * 400)
    ),
    ("guidance", "NaN", "invalid_value", "guidance"),
    ("guidance", "-1e999", "invalid_value", "guidance"),
    *(
        ("true_cfg_scale", text, "invalid_value", "true_cfg_scale")
        for text in ("NaN", "0", "0.5", "-1", "true", "31", "1e999", '"2"')
    ),
    *(
        ("max_sequence_length", text, "invalid_value", "max_sequence_length")
        for text in ("0", "-1", "65", "513", "6.4")
    ),
    *(
        ("output_compression", text, "invalid_value", "output_compression")
        for text in ("-1", "101", "50.5", '"50"', "true")
    ),
    *(("output_format", text, "invalid_value", "output_format") for text in ('"gif"', '"PNG"', '""', "1", '"svg"')),
    *(("response_format", text, "invalid_value", "response_format") for text in ('"base64"', "true")),
    ("background", '"transparent"', "unsupported_value", "background"),
    ("background", '"blue"', "invalid_value", "background"),
    ("stream", '"true"', "invalid_value", "stream"),
    ("stream", "1", "invalid_value", "stream"),
    ("partial_images", "2", "invalid_value", "partial_images"),
    ("partial_images", "4", "invalid_value", "partial_images"),
    ("metadata", '"some"', "invalid_value", "metadata"),
    ("model", "7", "invalid_value", "model"),
    ("user", "7", "invalid_value", "user"),
    ("negative_prompt", "7", "invalid_value", "negative_prompt"),
    ("negative_prompt", '"a\\u0000b"', "invalid_value", "negative_prompt"),
    ("negative_prompt", json.dumps("x" * 32_001), "invalid_value", "negative_prompt"),
    ("prmopt", '"a typing error"', "unknown_parameter", "prmopt"),
    ("num_images", "1", "unknown_parameter", "num_images"),
    ("lora", "null", "unknown_parameter", "lora"),
]


@pytest.mark.parametrize(
    ("member", "text", "code", "param"),
    WRONG_MEMBERS,
    ids=[f"{member}={text[:24]}".encode("ascii", "backslashreplace").decode() for member, text, _, _ in WRONG_MEMBERS],
)
async def test_a_wrong_member_is_refused_by_name_before_any_work(
    refusals: Refusals, member: str, text: str, code: str, param: str
) -> None:
    answer = await refusals.post(f'{{"prompt": "{PROMPT}", "{member}": {text}}}'.encode())
    _assert_problem(answer, 400, code, param)
    assert not refusals.submitted


WRONG_PROMPTS: list[tuple[str, str]] = [
    ('""', "invalid_value"),
    ('"   "', "invalid_value"),
    ('"\\t\\n\\u3000"', "invalid_value"),
    ("null", "invalid_value"),
    ("7", "invalid_value"),
    ("true", "invalid_value"),
    ('["a", "b"]', "invalid_value"),
    ("NaN", "invalid_value"),
    ('"a\\u0000b"', "invalid_value"),
    ('"\\ud800"', "invalid_value"),
    ('"a \\udfff circle"', "invalid_value"),
    (json.dumps("x" * 32_001), "invalid_value"),
    (json.dumps("x" * 100_000), "invalid_value"),
]


@pytest.mark.parametrize(("text", "code"), WRONG_PROMPTS, ids=[text[:20] for text, _ in WRONG_PROMPTS])
async def test_a_wrong_prompt_is_refused(refusals: Refusals, text: str, code: str) -> None:
    answer = await refusals.post(f'{{"prompt": {text}}}'.encode())
    _assert_problem(answer, 400, code, "prompt")
    assert len(answer.text) < 2000, "the answer repeats what was sent"
    assert not refusals.submitted


@pytest.mark.parametrize(
    ("members", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"n": 1}, "missing_required_parameter", "prompt"),
        ({"prompt": PROMPT, "size": "64x64", "width": 128}, "invalid_size", "size"),
        ({"prompt": PROMPT, "num_inference_steps": 4, "steps": 5}, "invalid_value", "steps"),
        ({"prompt": PROMPT, "guidance_scale": 4, "guidance": 5.5}, "invalid_value", "guidance"),
        ({"prompt": PROMPT, "seed": MAX_SEED, "n": 2}, "invalid_value", "seed"),
    ],
)
async def test_members_that_lack_or_contradict_are_refused(
    refusals: Refusals, members: dict[str, Any], code: str, param: str
) -> None:
    _assert_problem(await refusals.post(json.dumps(members).encode()), 400, code, param)
    assert not refusals.submitted


async def test_an_unknown_member_with_a_name_that_is_not_unicode_is_refused_too(refusals: Refusals) -> None:
    answer = await refusals.post(b'{"prompt": "a red circle", "\\ud800": 1}')
    assert answer.status_code == 400
    assert not refusals.submitted


@pytest.mark.parametrize("body", [{"x" * 900_000: 1}, {"size": "x" * 900_000}, {"model": "x" * 900_000}])
async def test_the_answer_does_not_repeat_a_megabyte(refusals: Refusals, body: dict[str, Any]) -> None:
    answer = await refusals.post(json.dumps({"prompt": PROMPT} | body).encode())
    assert answer.status_code in (400, 404)
    assert len(answer.content) < 10_000
    assert not refusals.submitted


async def test_another_model_is_not_found(refusals: Refusals) -> None:
    answer = await refusals.post(json.dumps({"prompt": PROMPT, "model": "sd-xl"}).encode())
    _assert_problem(answer, 404, "model_not_found", "model")
    assert not refusals.submitted


async def test_a_negative_prompt_that_could_not_act_is_refused(refusals: Refusals) -> None:
    answer = await refusals.post(b'{"prompt": "a", "negative_prompt": "b", "true_cfg_scale": 1}')
    _assert_problem(answer, 400, "invalid_value", "negative_prompt")
    assert not refusals.submitted


# --- bodies -------------------------------------------------------------------------------------------------------

WRONG_BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "missing_required_parameter"),
    "an open brace": (b"{", "invalid_json"),
    "a trailing comma": (b'{"prompt": "a",}', "invalid_json"),
    "single quotes": (b"{'prompt': 'a'}", "invalid_json"),
    "two values": (b'{"prompt": "a"} {}', "invalid_json"),
    "a form": (b"prompt=a+red+circle", "invalid_json"),
    "binary": (b"\x89PNG\r\n\x1a\n", "invalid_json"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "invalid_json"),
    "Latin-1": ('{"prompt": "é"}'.encode("latin-1"), "invalid_json"),
    "a byte order mark": (b'\xef\xbb\xbf{"prompt": "a"}', "invalid_json"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "invalid_json"),
    "UTF-32": ('{"prompt": "a"}'.encode("utf-32-le"), "invalid_json"),
    "a member twice": (b'{"prompt": "a", "prompt": "b"}', "invalid_json"),
    "NUL bytes": (b"\0\0\0\0", "invalid_json"),
    "a raw control character": (b'{"prompt": "a\x00b"}', "invalid_json"),
    "100,000 brackets": (b"[" * 100_000, "invalid_json"),
    "100,000 brackets in a member": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
    "100,000 braces": (b'{"a":' * 100_000, "invalid_json"),
    "a 5,000-digit number": (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
    "a list": (b'[{"prompt": "a"}]', "invalid_value"),
    "a string": (b'"a red circle"', "invalid_value"),
    "a number": (b"7", "invalid_value"),
    "true": (b"true", "invalid_value"),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
async def test_a_body_that_is_no_json_object_is_refused(refusals: Refusals, name: str) -> None:
    content, code = WRONG_BODIES[name]
    answer = await refusals.post(content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in (code, "invalid_value"), answer.text
    _assert_problem(answer, 400, answer.json()["error"]["code"], None)
    assert not refusals.submitted


async def test_null_is_no_request(refusals: Refusals) -> None:
    answer = await refusals.post(b"null")
    assert answer.status_code == 400
    assert not refusals.submitted


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "",
    ],
)
async def test_a_body_of_another_type_is_refused_with_the_right_one(refusals: Refusals, content_type: str) -> None:
    answer = await refusals.post(json.dumps({"prompt": PROMPT}).encode(), {"content-type": content_type})
    assert answer.status_code in (400, 415)
    assert "application/json" in answer.json()["detail"]
    assert answer.headers["x-request-id"]
    assert not refusals.submitted


# --- sizes of bodies ----------------------------------------------------------------------------------------------

LIMIT = 1024 * 1024


async def test_a_body_of_2_mb_is_too_large(refusals: Refusals) -> None:
    answer = await refusals.post(json.dumps({"prompt": "x" * 2 * LIMIT}).encode())
    _assert_problem(answer, 413, "body_too_large", None)
    assert not refusals.submitted


async def test_a_body_without_a_length_is_read_no_further_than_the_limit(refusals: Refusals) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b"x" * 65536

    answer = await refusals.post(endless())
    _assert_problem(answer, 413, "body_too_large", None)
    assert sent <= LIMIT + 3 * 65536


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 400), (LIMIT + 1, 413)])
async def test_the_limit_itself_is_allowed(refusals: Refusals, size: int, status: int) -> None:
    head, tail = b'{"prompt": "', b'"}'
    answer = await refusals.post(head + b"x" * (size - len(head) - len(tail)) + tail)
    assert answer.status_code == status, answer.text
    assert not refusals.submitted


# --- what is drawn ------------------------------------------------------------------------------------------------


async def test_a_picture_comes_back_in_openais_shape_with_its_seed(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json={"prompt": PROMPT, "seed": 7, "n": 2, "output_format": "webp"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        assert answer.headers["x-seed"] == "7"
        assert answer.headers["x-job-id"].startswith("job_")
        body = answer.json()
        assert body["created"] > 1_700_000_000
        assert (body["background"], body["output_format"], body["size"]) == ("opaque", "webp", "64x64")
        assert [image["seed"] for image in body["data"]] == [7, 8]
        pictures = [base64.b64decode(image["b64_json"], validate=True) for image in body["data"]]
        assert pictures == [b"a red circle 7", b"a red circle 8"]
        assert all(image.get("url") is None for image in body["data"])
        assert body["usage"] == {
            "total_tokens": 7 + 32,
            "input_tokens": 7,
            "output_tokens": 32,
            "input_tokens_details": {"text_tokens": 7, "image_tokens": 0},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": 32},
        }
        assert body["warnings"] == []


async def test_what_is_not_asked_is_the_models_default_and_is_told(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        used = (await client.post(URL, json={"prompt": PROMPT})).json()["params"]
        assert 0 <= used.pop("seed") < 2**32
        assert used == {
            "prompt": PROMPT,
            "metadata": "full",
            "partial_images": 0,
            "source": None,
            "negative_prompt": None,
            "width": 64,
            "height": 64,
            "num_inference_steps": 4,
            "guidance_scale": 3.5,
            "true_cfg_scale": 1.0,
            "max_sequence_length": 64,
            "num_images": 1,
            "output_format": "png",
            "output_compression": None,
            "loras": [],
        }


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({"size": "128x96"}, {"width": 128, "height": 96}),
        ({"size": "auto"}, {"width": 64, "height": 64}),
        ({"width": 128}, {"width": 128, "height": 64}),
        ({"height": 128, "size": "auto"}, {"width": 64, "height": 128}),
        ({"size": "128x96", "width": 128, "height": 96}, {"width": 128, "height": 96}),
        ({"steps": 7}, {"num_inference_steps": 7}),
        ({"guidance": 2}, {"guidance_scale": 2.0}),
        ({"guidance_scale": 0}, {"guidance_scale": 0.0}),
        ({"seed": MAX_SEED}, {"seed": MAX_SEED}),
        ({"seed": 0}, {"seed": 0}),
        ({"n": MAX_IMAGES}, {"num_images": MAX_IMAGES}),
        ({"negative_prompt": "blue"}, {"negative_prompt": "blue", "true_cfg_scale": 4.0}),
        ({"negative_prompt": "blue", "true_cfg_scale": 2}, {"true_cfg_scale": 2.0}),
        ({"negative_prompt": ""}, {"true_cfg_scale": 1.0}),
        ({"output_format": "jpeg", "output_compression": 0}, {"output_format": "jpeg", "output_compression": 0}),
        ({"max_sequence_length": 1}, {"max_sequence_length": 1}),
        ({"stream": False, "partial_images": 0, "response_format": "b64_json"}, {}),
        ({"quality": "auto", "background": "auto", "size": "auto", "model": "gpt-image-1"}, {}),
        ({"user": "u", "safety_identifier": "s", "moderation": "auto"}, {}),
        (
            dict.fromkeys(name for name in ImagesRequest.model_fields if name != "prompt"),
            {"num_images": 1, "num_inference_steps": 4},
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_asked_is_used(
    refusals: Refusals, asked: dict[str, Any], used: dict[str, Any], checkpoint_dir: Path
) -> None:
    await refusals.post(json.dumps({"prompt": PROMPT} | asked).encode())
    (params,) = refusals.submitted
    assert {name: getattr(params, name) for name in used} == used


@pytest.mark.parametrize(
    "prompt",
    [
        "x" * 4000,
        "x" * 32_000,
        "e\u0301\u0302\u0303 combining",
        "\u202eright to left\u202c שלום",
        "👩‍👩‍👧‍👦 \U0001f3f3\ufe0f\u200d\U0001f308",
        "\x01\x07\x1b[31m\x7f",
        "\ufffd",
        "\ufeffa BOM inside",
        "line\nline\r\n\ttab",
        '"quotes" and \\backslashes\\ and </script>',
    ],
    ids=range(10),
)
async def test_any_unicode_prompt_reaches_the_job_byte_for_byte(refusals: Refusals, prompt: str) -> None:
    for text in (json.dumps({"prompt": prompt}), json.dumps({"prompt": prompt}, ensure_ascii=False)):
        await refusals.post(text.encode())
        (params,) = refusals.submitted
        assert params.prompt.encode() == prompt.encode()


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "application/problem+json", "APPLICATION/JSON"]
)
async def test_json_by_any_of_its_names_is_json(refusals: Refusals, content_type: str) -> None:
    await refusals.post(json.dumps({"prompt": PROMPT}).encode(), {"content-type": content_type})
    assert refusals.submitted


async def test_members_without_effect_are_answered_with_a_warning(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        body = {"prompt": PROMPT, "quality": "hd", "style": "vivid", "moderation": "low"}
        warnings = (await client.post(URL, json=body)).json()["warnings"]
        assert [warning.split()[0] for warning in warnings] == ["quality", "style", "moderation"]
        body = {"prompt": PROMPT, "quality": "standard", "moderation": "auto"}
        assert (await client.post(URL, json=body)).json()["warnings"] == []


@pytest.mark.parametrize("accept", ["image/*", "image/png", "image/webp,*/*"])
async def test_who_accepts_an_image_gets_the_image(accept: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        asked = {"prompt": PROMPT, "seed": 5, "output_format": "jpeg"}
        answer = await client.post(URL, json=asked, headers={"accept": accept})
        assert answer.content == b"a red circle 5"
        assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/jpeg", "5")
        answer = await client.post(URL, json=asked | {"n": 2}, headers={"accept": accept})
        _assert_problem(answer, 400, "invalid_value", "n")


async def test_the_wrong_values_are_answered_quickly(refusals: Refusals) -> None:
    start_s = time.process_time()
    for content, _ in WRONG_BODIES.values():
        await refusals.post(content)
    assert time.process_time() - start_s < 0.05 * len(WRONG_BODIES)
