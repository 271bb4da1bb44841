"""Pictures from the embedded model over HTTP, with the real OpenAI client."""

from __future__ import annotations

import base64
import io
from typing import Any

import openai
import pytest
from PIL import Image

from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _picture(data: str | None) -> Image.Image:
    assert data
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_the_openai_client_gets_a_picture(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red circle on a blue background", model="safelight/shapes")
    assert answer.data and answer.usage
    image = _picture(answer.data[0].b64_json)
    assert (image.format, image.size) == ("PNG", (256, 256))
    assert answer.size is not None and answer.output_format == "png"
    assert answer.usage.output_tokens == 64


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(server: ServerProcess) -> None:
    first, again, other = (server.generate(seed=seed, steps=4).json()["data"][0] for seed in (7, 7, 8))
    assert first == again
    assert first["b64_json"] != other["b64_json"]
    assert other["seed"] == 8


def test_a_chosen_seed_comes_back_and_draws_the_same_picture(server: ServerProcess) -> None:
    first = server.generate(steps=4)
    seed = first.json()["data"][0]["seed"]
    assert first.headers["x-seed"] == str(seed)
    assert server.generate(steps=4, seed=seed).json()["data"] == first.json()["data"]


def test_n_images_have_seeds_in_a_row_and_each_can_be_made_alone(server: ServerProcess) -> None:
    pair = server.generate(n=2, seed=41, steps=4).json()["data"]
    assert [image["seed"] for image in pair] == [41, 42]
    assert server.generate(seed=42, steps=4).json()["data"][0]["b64_json"] == pair[1]["b64_json"]


@pytest.mark.parametrize(("output_format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_output_formats(server: ServerProcess, output_format: str, name: str) -> None:
    answer = server.generate(output_format=output_format, output_compression=80, size="128x192", steps=2).json()
    image = _picture(answer["data"][0]["b64_json"])
    assert (image.format, image.size) == (name, (128, 192))
    assert answer["output_format"] == output_format


def test_accept_image_gives_the_picture_itself(server: ServerProcess) -> None:
    body: dict[str, Any] = {"prompt": "a red circle", "seed": 5, "steps": 1}
    answer = server.http.post("/v1/images/generations", json=body, headers={"accept": "image/png"})
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == ("image/png", "5")
    assert base64.b64encode(answer.content).decode() == server.generate(**body).json()["data"][0]["b64_json"]


def test_a_png_says_how_it_was_made(server: ServerProcess) -> None:
    image = _picture(server.generate(seed=5, steps=1).json()["data"][0]["b64_json"])
    image.load()
    assert "Steps: 1, " in image.info["parameters"] and ", Seed: 5, " in image.info["parameters"]
    assert "Model: safelight/shapes" in image.info["parameters"]


def test_words_that_the_model_does_not_know_are_named(server: ServerProcess) -> None:
    answer = server.generate("a red zeppelin on a blue background", steps=2).json()
    assert answer["warnings"] == ["the model does not know: zeppelin"]
    assert server.generate("a red circle on a blue background", steps=2).json()["warnings"] == []


@pytest.mark.parametrize(
    "members",
    [
        {"guidance_scale": 1.0},
        {"guidance": 6.0},
        {"true_cfg_scale": 3.0, "negative_prompt": "a blue square"},
        {"negative_prompt": "a blue square"},
        {"true_cfg_scale": 3.0},
        {"num_inference_steps": 3},
        {"steps": 5},
        {"max_sequence_length": 16},
    ],
    ids=str,
)
def test_every_parameter_acts_on_the_picture(server: ServerProcess, members: dict[str, Any]) -> None:
    plain, changed = (
        server.generate("a green star on a red background", **({"seed": 1} | asked)) for asked in ({}, members)
    )
    assert changed.status_code == 200, changed.text
    assert changed.json()["data"][0]["b64_json"] != plain.json()["data"][0]["b64_json"]


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"size": "4096x4096"}, "width"),
        ({"size": "100x100"}, "size"),
        ({"size": "144x144"}, "width"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"max_sequence_length": 512}, "max_sequence_length"),
        ({"model": "another"}, "model"),
    ],
    ids=str,
)
def test_what_this_model_cannot_do_is_refused_by_name(
    server: ServerProcess, members: dict[str, Any], param: str
) -> None:
    answer = server.generate(**members)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_an_error_reaches_the_openai_client_with_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a", extra_body={"seed": -1})
    assert (caught.value.code, caught.value.param) == ("invalid_value", "seed")
    assert caught.value.request_id


def test_models_are_listed_as_openai_lists_them(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["safelight/shapes"]
    assert client.models.retrieve("safelight/shapes").owned_by == "safelight"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")
