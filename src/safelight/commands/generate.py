"""``safelight generate``: one image, from a running server or from an engine of its own."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from typing import TYPE_CHECKING, Any

from safelight.checkpoint import open_checkpoint
from safelight.client import Client, Picture, find_server
from safelight.commands.developing import Developing
from safelight.commands.picture_file import write_picture
from safelight.commands.terminal_support import picture_terminal
from safelight.config import EMBEDDED_MODEL, load_config
from safelight.errors import InvalidSize, InvalidValue, Unavailable
from safelight.lora.directory import AdapterDirectories
from safelight.params import GenerationParams, ImageFormat
from safelight.setting_values import parse_size

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = {".png": ImageFormat.PNG, ".jpg": ImageFormat.JPEG, ".jpeg": ImageFormat.JPEG, ".webp": ImageFormat.WEBP}


def generate(args: argparse.Namespace) -> int:
    """Writes the picture and prints its path and seed. The file's suffix chooses the format."""
    image_format = _FORMATS.get(args.output.suffix.lower())
    if image_format is None:
        raise InvalidValue(f"--output {args.output} must end in .png, .jpg or .webp", param="output")
    client = None if args.local else _find_server(args.url, args.api_key)
    with Developing(picture_terminal(args.show)) as developing:
        developing.waiting()
        if client is not None:
            picture = client.generate(
                _body(args, image_format, developing.previews), developing.step, developing.picture, developing.waiting
            )
        else:
            picture = asyncio.run(_generate_here(args, image_format, developing))
        write_picture(args.output, picture.data)
        developing.picture(picture.data)
    for warning in picture.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{args.output} (seed {picture.seed})")
    return 0


def _find_server(url: str | None, api_key: str | None) -> Client | None:
    try:
        return find_server(url, api_key)
    except Unavailable:
        if url:
            raise
        return None


def _body(args: argparse.Namespace, image_format: ImageFormat, previews: int) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": args.model,
        "seed": args.seed,
        "num_inference_steps": args.steps,
        "size": args.size,
        "partial_images": previews,
        "loras": [{"name": use.name, "scale": use.scale} for use in args.lora] or None,
    }
    return {"prompt": args.prompt, "output_format": image_format.value} | {
        name: value for name, value in asked.items() if value is not None
    }


async def _generate_here(args: argparse.Namespace, image_format: ImageFormat, developing: Developing) -> Picture:
    from safelight.engine.images import encode_image, encode_preview
    from safelight.engine.model_manager import ModelManager
    from safelight.engine.options import EngineOptions

    config = load_config({}, os.environ)
    checkpoint = open_checkpoint(args.model or EMBEDDED_MODEL, config.pulled_models, args.base_model)
    card = checkpoint.card
    for use in args.lora:  # known before the model is loaded
        AdapterDirectories.of(checkpoint, config.adapters_dir).read(use.name)
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
        partial_images=developing.previews,
        loras=tuple(args.lora),
    )
    card.check(params)
    device = _torch_device(args.device)

    def on_preview(_index: int, _step: int, image: Image.Image) -> None:
        developing.picture(encode_preview(image, params))

    async with ModelManager() as manager:
        options = EngineOptions(loras_dir=str(config.adapters_dir))
        await manager.load_model(checkpoint, device, options, lambda progress: developing.loading(device, progress))
        generation = await manager.generate_image(params, developing.step, on_preview)
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
