"""Real clients, unmodified, with nothing but the address changed."""

from __future__ import annotations

import base64
import io

import httpx2 as httpx
from huggingface_hub import InferenceClient
from PIL import Image

from tests.server_process import ServerProcess

PROMPT = "a large red circle on a blue background"


def _is_red_circle(image: Image.Image) -> bool:
    red, green, blue = image.convert("RGB").resize((3, 3)).getpixel((1, 1))  # type: ignore[misc]
    return bool(red > 1.5 * max(green, blue))


def test_hugging_faces_client_draws(server: ServerProcess) -> None:
    client = InferenceClient(base_url=server.url, timeout=60)
    image = client.text_to_image(PROMPT, seed=1, num_inference_steps=6)
    assert image.size == (256, 256)
    assert _is_red_circle(image)


def test_txt2img_as_open_webui_asks(server: ServerProcess) -> None:
    """Empty Basic credentials, the defaults of another model, options before and after."""
    with httpx.Client(base_url=server.url, auth=("", ""), timeout=60) as client:
        options = client.get("/sdapi/v1/options").json()
        assert client.post("/sdapi/v1/options", json=options).status_code == 200
        body = {"prompt": PROMPT, "batch_size": 1, "width": 256, "height": 256, "steps": 6, "seed": 1, "cfg_scale": 7}
        answer = client.post("/sdapi/v1/txt2img", json=body).json()
    assert _is_red_circle(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))


def test_a_prediction_from_start_to_picture(server: ServerProcess) -> None:
    body = {"input": {"prompt": PROMPT, "seed": 1, "num_inference_steps": 6, "output_format": "webp"}}
    made = server.http.post("/v1/predictions", json=body, headers={"prefer": "wait"}).json()
    picture = server.http.get(made["output"][0])
    assert picture.headers["content-type"] == "image/webp"
    assert _is_red_circle(Image.open(io.BytesIO(picture.content)))
