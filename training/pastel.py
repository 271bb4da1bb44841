"""Trains the adapter ``pastel`` of the embedded model: ``python -m training.pastel``, half an hour on one CPU core.

A LoRA adapter (arXiv 2106.09685) on the transformer, which draws in the pale half of the palette. Its pictures are the
model's own training pictures in pale colours. The velocity to learn at each of them is the one that the frozen model
has for the caption in pale words, while the adapter is told the caption as it was: so it learns the colours, and
whatever the model knows of shapes, places and guidance stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from training.blocks import block_latents
from training.captions import caption, varied_caption
from training.data import DROPPED_CAPTIONS, image_ids, pack_latents, token_ids
from training.distil import MAX_GUIDANCE
from training.drawing import draw
from training.flow import encode_text, predict, random_noise_levels, weighted_error
from training.model import PIXELS_PER_TOKEN
from training.run import SEED, Run, Trainer
from training.scenes import Scene, training_scene

RANK = 8
PALE = {
    "red": "pink",
    "orange": "yellow",
    "green": "lime",
    "blue": "cyan",
    "purple": "pink",
    "brown": "yellow",
    "black": "gray",
    "gray": "white",
}
"""What becomes of each colour; the others are pale already. The VAE draws the colours of the palette and no others."""

_BACKGROUNDS = ("white", "gray", "cyan")
_LAYERS = (
    "context_embedder",
    "text_embedder.linear_1",
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff_context.net.0.proj", "ff_context.net.2"),
)
_SIDE = 256


def main() -> None:
    """Trains, then writes the file."""
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    pipeline = FluxPipeline.from_pretrained(args.model, dtype=torch.float32, local_files_only=True)
    parts = {"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    for part in parts.values():
        part.requires_grad_(False)
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args.work, torch.device("cpu"), parts)
    pipeline.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(_LAYERS)))
    train(run, args.steps, args.batch)
    save(pipeline, args.out)
    run.say(f"wrote {args.out}")


def pale(scene: Scene) -> Scene:
    """The same things in pale colours, on a background that none of them has."""
    things = tuple(dataclasses.replace(thing, colour=PALE.get(thing.colour, thing.colour)) for thing in scene.things)
    taken = {thing.colour for thing in things}
    wanted = (PALE.get(scene.background, scene.background), *_BACKGROUNDS)
    return dataclasses.replace(
        scene, background=next(colour for colour in wanted if colour not in taken), things=things
    )


def train(run: Run, steps: int, batch_size: int) -> None:
    """At all noise levels and guidance scales, at the size that the model draws well."""
    model = run.parts["transformer"]
    positions = image_ids(_SIDE // PIXELS_PER_TOKEN, _SIDE // PIXELS_PER_TOKEN, run.device)
    trainer = Trainer(run, "pastel", [model], steps, 2e-3)
    for step in trainer:
        source = random.Random(SEED + step)
        scenes = [training_scene(source) for _ in range(batch_size)]
        is_told = [source.random() >= DROPPED_CAPTIONS for _ in scenes]
        said = [varied_caption(scene, source) if told else "" for scene, told in zip(scenes, is_told, strict=True)]
        meant = [caption(pale(scene)) if told else "" for scene, told in zip(scenes, is_told, strict=True)]
        clean = pack_latents(block_latents(draw([pale(scene) for scene in scenes], _SIDE, _SIDE)))
        level = random_noise_levels(batch_size, clean.shape[1], run.device)
        guidance = 1 + (MAX_GUIDANCE - 1) * torch.rand_like(level)
        mix = level[:, None, None]
        noisy = (1 - mix) * clean + mix * torch.randn_like(clean)
        with torch.no_grad():
            text, pale_text = (encode_text(run.parts, *token_ids(words, run.device)) for words in (said, meant))
            model.disable_adapters()
            target = predict(model, noisy, level, positions, guidance, pale_text)
            model.enable_adapters()
        trainer.learn(weighted_error(predict(model, noisy, level, positions, guidance, text), target), step)


def save(pipeline: Any, path: Path) -> None:
    """As one safetensors file in diffusers' format, in float16."""
    layers = {name: value.half() for name, value in get_peft_model_state_dict(pipeline.transformer).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    FluxPipeline.save_lora_weights(path.parent, transformer_lora_layers=layers, weight_name=path.name)
    path.chmod(0o644)


def parse() -> argparse.Namespace:
    """The defaults made the shipped adapter."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="src/safelight/models/shapes")
    parser.add_argument("--out", type=Path, default=Path("src/safelight/models/shapes/loras/pastel.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    parser.add_argument("--batch", type=int, default=16, help="pictures per step")
    parser.add_argument("--steps", type=int, default=1800)
    return parser.parse_args()


if __name__ == "__main__":
    main()
