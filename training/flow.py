"""Stage 2: transformer and text encoders learn the velocity from pictures to noise, by flow matching."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from training.blocks import CHANNELS, COEFFICIENTS
from training.data import Batch, batches
from training.run import SEED, Run, Trainer

Text = tuple[Tensor, Tensor]
"""T5's states (batch, length, width) and CLIP's pooled vectors (batch, width)."""


def train_flow(run: Run, steps: int, batch_size: int) -> None:
    """Squared error of the velocity, over all noise levels but most often near pure noise."""
    transformer = run.parts["transformer"]
    compile_blocks(run, transformer)
    trainer = Trainer(run, "flow", [transformer, run.parts["clip"], run.parts["t5"]], steps, 1.2e-3)
    data = batches(batch_size, SEED + 1, run.device, trainer.first_step)
    for step, batch in zip(trainer, data, strict=False):
        noisy, level, target = add_noise(batch)
        with stance(batch), torch.autocast(run.device.type, torch.bfloat16):
            text = encode_text(run.parts, batch.clip_ids, batch.t5_ids)
            velocity = predict(transformer, noisy, level, batch.image_ids, torch.ones_like(level), text)
        trainer.learn(weighted_error(velocity.float(), target), step)


def compile_blocks(run: Run, transformer: Any) -> None:
    """Compiles each kind of block once, in place, on CUDA; on a CPU it gains too little."""
    if run.device.type == "cuda":
        transformer.compile_repeated_blocks(fullgraph=True)


def stance(batch: Batch) -> Any:
    """Only the main size runs compiled: each further one would cost a compile for few steps."""
    return torch.compiler.set_stance("default" if batch.is_main_size else "force_eager")


def weighted_error(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean squared error with the squares' mean colours counted four times as much as their details.

    Seven of eight channels hold details; unweighted they would drown what matters first: colour and place.
    """
    weights = torch.where(torch.arange(CHANNELS, device=target.device) % COEFFICIENTS == 0, 4.0, 1.0)
    squares = (velocity - target).square().reshape(*target.shape[:-1], CHANNELS, -1)
    return torch.mean(squares * (weights / weights.mean())[:, None])


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
