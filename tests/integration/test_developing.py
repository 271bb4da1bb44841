"""The embedded model's pictures while they develop, and pictures that begin with a picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from tests.server_process import ServerProcess

RED, YELLOW, BLUE, GREEN = (226, 30, 36), (250, 224, 40), (36, 74, 220), (36, 150, 56)
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _picture(data: str | None) -> Image.Image:
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _is(colour: tuple[int, int, int], image: Image.Image, x: int, y: int) -> bool:
    return max(abs(a - b) for a, b in zip(colour, image.getpixel((x, y)), strict=True)) < 70  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def circle(client: openai.OpenAI) -> Image.Image:
    answer = client.images.generate(prompt=PROMPT, extra_body={"seed": 1})
    assert answer.data
    return _picture(answer.data[0].b64_json)


def test_previews_come_nearer_to_the_picture(client: openai.OpenAI, circle: Image.Image) -> None:
    """From the job's own latents: each is like the picture that comes of it, and not like another one."""
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 1})
    images = [np.asarray(_picture(event.b64_json)).astype(float) for event in stream]
    other = client.images.generate(prompt="a small green square on a yellow background", extra_body={"seed": 2})
    assert other.data
    unlike = np.asarray(_picture(other.data[0].b64_json)).astype(float)
    *previews, finished = images
    assert len(previews) == 3
    assert np.array_equal(finished, np.asarray(circle))
    distances = [float(np.abs(preview - finished).mean()) for preview in previews]
    assert distances[2] < distances[0]
    assert distances[2] < 25
    for preview in previews:
        assert np.corrcoef(preview.ravel(), finished.ravel())[0, 1] > 0.8
        assert np.abs(preview - unlike).mean() > 2 * np.abs(preview - finished).mean()


def test_a_picture_is_changed_as_the_prompt_says(client: openai.OpenAI, circle: Image.Image) -> None:
    answer = client.images.edit(
        image=_png(circle),
        prompt="a large yellow circle on a blue background",
        extra_body={"seed": 2, "strength": 0.8},
    )
    assert answer.data
    changed = _picture(answer.data[0].b64_json)
    assert _is(RED, circle, 128, 128)
    assert _is(YELLOW, changed, 128, 128) and _is(BLUE, changed, 10, 10)


def test_a_mask_keeps_the_rest_to_the_pixel(client: openai.OpenAI, circle: Image.Image) -> None:
    mask = Image.new("L", circle.size, 0)
    mask.paste(255, (128, 0, 256, 256))
    answer = client.images.edit(
        image=_png(circle),
        mask=_png(mask),
        prompt="a large green square on a yellow background",
        extra_body={"seed": 2},
    )
    assert answer.data
    changed = _picture(answer.data[0].b64_json)
    left = (0, 0, 128, 256)
    assert changed.crop(left).tobytes() == circle.crop(left).tobytes()
    assert _is(GREEN, changed, 160, 128) and _is(YELLOW, changed, 245, 10)


def test_a_weak_change_takes_only_its_share_of_the_steps(server: ServerProcess, circle: Image.Image) -> None:
    uri = "data:image/png;base64," + base64.b64encode(_png(circle)).decode()
    body = {"input": {"prompt": PROMPT, "image": uri, "prompt_strength": 0.25, "steps": 8}}
    made = server.post("/v1/predictions", body).json()
    assert made["progress"]["total"] == 2
    assert server.post(f"/v1/predictions/{made['id']}/cancel", {}).status_code == 200
