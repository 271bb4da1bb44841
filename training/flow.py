"""Stage 2: transformer and text encoders learn the velocity from pictures to noise, by flow matching."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training import tokens
from training.blocks import block_latents
from training.captions import varied_caption
from training.drawing import Window, draw_packed, pack
from training.run import SEED, Run, Trainer
from training.scenes import Scene, training_scene

BATCH = 40
DROPPED_CAPTIONS = 0.1

_OTHER_SIZES = ((192, 192), (256, 192), (192, 256), (320, 256), (256, 320), (384, 384))
_OTHER_EVERY = 10
_OTHER_BATCH = 20

Text = tuple[Tensor, Tensor]
"""T5's states (batch, length, width) and CLIP's pooled vectors (batch, width)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """``clean`` (batch, tokens, 4 x channels); ids (batch, length); ``image_ids`` (tokens, 3)."""

    clean: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    image_ids: Tensor


class Scenes:
    """Endless training batches; no picture is seen twice but by chance."""

    def __init__(self, run: Run, source: random.Random) -> None:
        self._run = run
        self._source = source

    def batch(self, step: int, count: int = BATCH) -> Batch:
        """Scenes of the main size; every tenth batch is of another one."""
        width, height = 256, 256
        if step % _OTHER_EVERY == _OTHER_EVERY - 1:
            width, height = _OTHER_SIZES[(step // _OTHER_EVERY) % len(_OTHER_SIZES)]
            count = _OTHER_BATCH
        scenes = [training_scene(self._source, width / height) for _ in range(count)]
        pictures = draw_packed(pack(scenes).to(self._run.device), Window.whole(count, width, height))
        return self._make(scenes, block_latents(pictures))

    def _make(self, scenes: list[Scene], latents: Tensor) -> Batch:
        captions = [
            "" if self._source.random() < DROPPED_CAPTIONS else varied_caption(scene, self._source) for scene in scenes
        ]
        rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
        ids = image_ids(rows, columns, self._run.device)
        return Batch(pack_latents(latents), *token_ids(captions, self._run.device), ids)


def train_flow(run: Run, steps: int) -> None:
    """Mean squared error of the velocity, over all noise levels but most often near pure noise."""
    scenes = Scenes(run, random.Random(SEED + 1))
    trainer = Trainer(run, "flow", [run.parts[name] for name in ("transformer", "clip", "t5")], steps, 1.5e-3)
    for step in trainer:
        batch = scenes.batch(step)
        noisy, level, target = add_noise(batch)
        with torch.autocast(run.device.type, torch.bfloat16):
            text = encode_text(run.parts, batch.clip_ids, batch.t5_ids)
            velocity = predict(run.parts["transformer"], noisy, level, batch.image_ids, torch.ones_like(level), text)
        trainer.learn(F.mse_loss(velocity.float(), target), step)


def add_noise(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(noisy latents, noise levels 0..1, velocity to learn)."""
    noise = torch.randn_like(batch.clean)
    level = random_noise_levels(len(noise), noise.shape[1], noise.device)
    mix = level[:, None, None]
    return (1 - mix) * batch.clean + mix * noise, level, noise - batch.clean


def random_noise_levels(count: int, image_tokens: int, device: torch.device) -> Tensor:
    """Logit-normal, shifted as FLUX shifts them at inference; half of them are drawn close to pure noise instead.

    A caption leaves little open here, so most of what there is to learn is learnt where the noise hides the picture.
    """
    mu = 0.5 + (1.15 - 0.5) * (image_tokens - 256) / (4096 - 256)
    level = torch.sigmoid(torch.randn(count, device=device))
    level = math.exp(mu) * level / (1 + (math.exp(mu) - 1) * level)
    high = 1 - 0.2 * torch.rand(count, device=device) ** 2
    return torch.where(torch.rand(count, device=device) < 0.5, high, level)


def predict(transformer: Any, noisy: Tensor, level: Tensor, positions: Tensor, guidance: Tensor, text: Text) -> Tensor:
    """The transformer's velocity, called as ``FluxPipeline`` calls it."""
    velocity: Tensor = transformer(
        hidden_states=noisy,
        encoder_hidden_states=text[0],
        pooled_projections=text[1],
        timestep=level,
        img_ids=positions,
        txt_ids=torch.zeros(text[0].shape[1], 3, device=noisy.device),
        guidance=guidance,
        return_dict=False,
    )[0]
    return velocity


def encode_text(parts: dict[str, Any], clip_ids: Tensor, t5_ids: Tensor) -> Text:
    """As ``FluxPipeline`` encodes a prompt: no attention mask."""
    return parts["t5"](input_ids=t5_ids)[0], parts["clip"](input_ids=clip_ids).pooler_output


def token_ids(captions: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids for CLIP and T5, each (batch, length)."""
    clip_ids, t5_ids = (
        torch.tensor(tokens.encode(captions, with_start=start), device=device) for start in (True, False)
    )
    return clip_ids, t5_ids


def pack_latents(latents: Tensor) -> Tensor:
    """(batch, channels, h, w) to FLUX's tokens of 2x2 latents, (batch, h/2 x w/2, 4 x channels)."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions of image tokens for RoPE, (rows x columns, 3)."""
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None, :]
    return ids.reshape(-1, 3)
