"""``safelight generate``: one image, from a running server or from an engine of its own."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from safelight.checkpoint import open_checkpoint
from safelight.client import Client, OnStep, Picture
from safelight.config import parse_size
from safelight.errors import InvalidSize, InvalidValue, Unavailable
from safelight.params import GenerationParams, ImageFormat

_DEFAULT_URL = "http://127.0.0.1:8000"
_FORMATS = {".png": ImageFormat.PNG, ".jpg": ImageFormat.JPEG, ".jpeg": ImageFormat.JPEG, ".webp": ImageFormat.WEBP}


def generate(args: argparse.Namespace) -> int:
    """Writes the picture and prints its path and seed. The file's suffix chooses the format."""
    image_format = _FORMATS.get(args.output.suffix.lower())
    if image_format is None:
        raise InvalidValue(f"--output {args.output} must end in .png, .jpg or .webp", param="output")
    client = None if args.local else _find_server(args.url, args.api_key)
    with _progress() as on_step:
        if client is not None:
            picture = client.generate(_body(args, image_format), on_step)
        else:
            picture = asyncio.run(_generate_here(args, image_format, on_step))
    _write(args.output, picture)
    return 0


def _find_server(url: str | None, api_key: str | None) -> Client | None:
    client = Client(url or _DEFAULT_URL, api_key)
    if client.is_alive():
        return client
    if url:
        raise Unavailable(f"no Safelight server answers at {url}")
    return None


def _body(args: argparse.Namespace, image_format: ImageFormat) -> dict[str, Any]:
    asked = {"seed": args.seed, "num_inference_steps": args.steps, "size": args.size}
    return {"prompt": args.prompt, "output_format": image_format.value} | {
        name: value for name, value in asked.items() if value is not None
    }


async def _generate_here(args: argparse.Namespace, image_format: ImageFormat, on_step: OnStep) -> Picture:
    from safelight.engine.images import encode_image
    from safelight.engine.model_manager import ModelManager

    checkpoint = open_checkpoint(args.model)
    card = checkpoint.card
    width, height = _size(args.size) if args.size else (card.default_width, card.default_height)
    params = GenerationParams(
        prompt=args.prompt,
        width=width,
        height=height,
        num_inference_steps=card.default_num_inference_steps if args.steps is None else args.steps,
        guidance_scale=card.default_guidance_scale,
        max_sequence_length=card.max_sequence_length,
        seed=secrets.randbelow(2**32) if args.seed is None else args.seed,
        output_format=image_format,
    )
    card.check(params)
    async with ModelManager() as manager:
        await manager.load_model(checkpoint, _torch_device(args.device))
        generation = await manager.generate_image(params, on_step)
    encoded = await asyncio.to_thread(encode_image, generation.images[0], params, params.seed, card.id)
    return Picture(encoded.data, params.seed, generation.warnings)


def _size(text: str) -> tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidSize(f"--size {text!r} {error}", param="size") from None


def _torch_device(device: str) -> str:
    from safelight.server.devices import resolve_devices

    return resolve_devices(device)[0].name


@contextmanager
def _progress() -> Iterator[OnStep]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("loading", total=None)

        def on_step(step: int, total_steps: int) -> None:
            bars.update(task, description="developing", completed=step, total=total_steps)

        yield on_step


def _write(path: Path, picture: Picture) -> None:
    try:
        path.write_bytes(picture.data)
    except OSError as error:
        raise InvalidValue(f"--output {path} cannot be written: {error.strerror}", param="output") from None
    for warning in picture.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path} (seed {picture.seed})")
