"""The pictures of the README, drawn by a running server: ``python -m scripts.docs_pictures URL``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import httpx2 as httpx
from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "images"
SEED = 1
GALLERY = {
    "star-square": "a yellow star to the left of a purple square on a gray background",
    "ring-diamond": "a cyan ring above an orange diamond on a brown background",
    "moon": "a white moon at the top right on a black background",
    "cross": "a large lime cross at the bottom left on a purple background",
    "square-circle": "a small brown square below a small yellow circle on a green background",
    "star-heart": "a red heart to the right of a white star on a blue background",
}
DEVELOPING = ("star-square", "moon", "star-heart")

_PREVIEWS = 10
_FRAME_MS, _FIRST_MS, _LAST_MS = 250, 600, 2500


def draw_gallery(client: httpx.Client) -> None:
    """One PNG per prompt, as the server answers it: the file says how it was made."""
    for name, prompt in GALLERY.items():
        body = {"prompt": prompt, "seed": SEED}
        answer = client.post("/v1/images/generations", json=body, headers={"accept": "image/png"})
        (FOLDER / f"{name}.png").write_bytes(answer.raise_for_status().content)


def draw_developing(client: httpx.Client) -> None:
    """The previews of three pictures beside each other, then the pictures, as an animation."""
    films = [_film(client, GALLERY[name]) for name in DEVELOPING]
    frames = [_side_by_side(pictures) for pictures in zip(*films, strict=True)]
    first, *others = frames
    durations_ms = [_FIRST_MS, *[_FRAME_MS] * (len(frames) - 2), _LAST_MS]
    first.save(
        FOLDER / "developing.webp", save_all=True, append_images=others, duration=durations_ms, quality=80, loop=0
    )


def _film(client: httpx.Client, prompt: str) -> list[Image.Image]:
    given = {"prompt": prompt, "seed": SEED, "partial_images": _PREVIEWS}
    job = client.post("/v1/predictions", json={"input": given}).raise_for_status().json()
    frames = []
    with client.stream("GET", job["urls"]["stream"], params={"previews": "true"}) as stream:
        kind = ""
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            kind = value if name == "event" else kind
            if name == "data" and kind in ("preview", "output"):
                url = json.loads(value)["url"] if kind == "preview" else value
                frames.append(Image.open(io.BytesIO(client.get(url).raise_for_status().content)).convert("RGB"))
    return frames


def _side_by_side(pictures: tuple[Image.Image, ...]) -> Image.Image:
    width, height = pictures[-1].size
    wide = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        wide.paste(picture.resize((width, height)), (place * width, 0))
    return wide


if __name__ == "__main__":
    with httpx.Client(base_url=sys.argv[1], timeout=120) as client:
        draw_gallery(client)
        draw_developing(client)
