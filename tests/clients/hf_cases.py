"""Run by ``huggingface_hub``: ``python hf_cases.py URL KEY``. Prints one JSON object."""

import io
import json
import sys

import httpx
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

url, key = sys.argv[1:]
client = InferenceClient(base_url=url, api_key=key, timeout=60)


def success():
    image = client.text_to_image("a red circle", seed=5, num_inference_steps=4, width=256, height=192)
    return image.size, image.format


def image_to_image():
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (0, 0, 255)).save(buffer, "PNG")
    asked = client.image_to_image(buffer.getvalue(), prompt="a", target_size={"width": 128, "height": 128})
    return asked.size, client.image_to_image(buffer.getvalue()).size


def error():
    try:
        client.text_to_image("a red circle", width=17)
    except HfHubHTTPError as error:
        return error.response.status_code, "width is 17" in str(error)


def wrong_key():
    try:
        InferenceClient(base_url=url, api_key="no-such-key").text_to_image("a")
    except HfHubHTTPError as error:
        return error.response.status_code


def timeout():
    try:
        InferenceClient(base_url=url, api_key=key, timeout=0.5).text_to_image("a", num_inference_steps=200)
    except httpx.TimeoutException:
        return True


CASES = (success, image_to_image, error, wrong_key, timeout)
print(json.dumps({case.__name__: case() for case in CASES}))
