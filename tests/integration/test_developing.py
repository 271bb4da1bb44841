"""The embedded model's pictures while they develop, and pictures that begin with a picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from tests.server_process import ServerProcess
from training.captions import caption
from training.checker import judge
from training.scenes import SIZES, Scene, Thing, place

RED, YELLOW, BLUE = (226, 30, 36), (250, 224, 40), (36, 74, 220)
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


def _scene(position: str, size: str, colour: str, shape: str, background: str) -> Scene:
    return Scene(background, (Thing(colour, shape, size, *place(position, SIZES[size])),), position=position)


CHANGES = [
    (_scene("in the center", "large", "red", "circle", "blue"), ("yellow", "star")),
    (_scene("at the top left", "medium", "green", "square", "white"), ("purple", "heart")),
    (_scene("on the right", "medium", "orange", "diamond", "black"), ("cyan", "circle")),
    (_scene("at the bottom", "large", "pink", "heart", "gray"), ("blue", "square")),
]
"""What is there, and what is to be in its place."""


Edit = tuple[Scene, Image.Image, Image.Image, Image.Image]


def _around(thing: Thing, picture: Image.Image) -> Image.Image:
    """A mask of the square in which ``thing`` lies, with some space."""
    reach, mask = thing.radius + 0.04, Image.new("L", picture.size, 0)
    left, top, right, bottom = (
        round(edge * picture.width) for edge in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    )
    mask.paste(255, (left, top, right, bottom))
    return mask


@pytest.fixture(scope="module")
def edited(client: openai.OpenAI) -> list[Edit]:
    """Of each change: what is wanted, the picture before, the area around its object, and the picture after."""
    edits = []
    for seed, (scene, (colour, shape)) in enumerate(CHANGES):
        thing = scene.things[0]
        wanted = _scene(scene.position or "", thing.size, colour, shape, scene.background)
        drawn = client.images.generate(prompt=caption(scene), extra_body={"seed": seed})
        before = _picture(drawn.data[0].b64_json if drawn.data else None)
        mask = _around(thing, before)
        answer = client.images.edit(
            image=_png(before), mask=_png(mask), prompt=caption(wanted), extra_body={"seed": seed + 10}
        )
        edits.append((wanted, before, mask, _picture(answer.data[0].b64_json if answer.data else None)))
    return edits


def test_under_the_mask_is_what_the_prompt_says(edited: list[Edit]) -> None:
    """By the judge that reads pixels: the new object in the old one's place and size, on the old background."""
    verdicts = [judge(np.asarray(after), wanted) for wanted, _, _, after in edited]
    assert [verdict.is_right for verdict in verdicts].count(True) >= len(CHANGES) - 1, verdicts
    assert all(verdict.background and verdict.colour for verdict in verdicts), verdicts


def test_outside_the_mask_nothing_changes(edited: list[Edit]) -> None:
    for _, before, mask, after in edited:
        outside = np.asarray(mask) == 0
        assert np.array_equal(np.asarray(before)[outside], np.asarray(after)[outside])
        assert np.abs(np.asarray(before, int) - np.asarray(after, int))[~outside].max() > 100


def test_a_weak_change_takes_only_its_share_of_the_steps(server: ServerProcess, circle: Image.Image) -> None:
    uri = "data:image/png;base64," + base64.b64encode(_png(circle)).decode()
    body = {"input": {"prompt": PROMPT, "image": uri, "prompt_strength": 0.25, "steps": 8}}
    made = server.post("/v1/predictions", body).json()
    assert made["progress"]["total"] == 2
    assert server.post(f"/v1/predictions/{made['id']}/cancel", {}).status_code == 200
