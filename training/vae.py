"""Stage 1: the decoder learns to draw pictures from block latents, and the encoder to find them in pictures.

Both begin as what they should roughly become: the decoder paints each square in its mean colour, since its residual
branches start at zero and its other convolutions pass their first channels on.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from training.blocks import block_latents
from training.drawing import Window, draw_packed, pack
from training.run import SEED, Run, Trainer
from training.scenes import training_scene

_CROPS = ((64, 32), (64, 32), (128, 8), (64, 32), (128, 8), (256, 2))
"""Side in pixels and batch size, in turn: whole pictures are rare, since a crop teaches the same for less."""

_LATENT_NOISE = 0.03
_PASSED_CHANNELS = 16


def train_vae(run: Run, steps: int, _batch_size: int) -> None:
    """The decoder for ``steps``, the encoder for half as many."""
    vae = run.parts["vae"].to(memory_format=torch.channels_last)
    begin_as_block_colours(vae)
    _train_decoder(run, vae.decoder, steps)
    _train_encoder(run, vae, steps // 2)
    error = _pixel_error(run)
    run.log["vae_mean_pixel_error"] = error
    run.say(f"vae: mean pixel error {error}")


def _train_decoder(run: Run, decoder: nn.Module, steps: int) -> None:
    """L1 on pixels and on their differences."""
    source = random.Random(SEED)
    trainer = Trainer(run, "decoder", [decoder], steps, 3e-3)
    for step in trainer:
        pictures = _random_crops(source, *_CROPS[step % len(_CROPS)]).to(run.device)
        latents = block_latents(pictures)
        with torch.autocast(run.device.type, torch.bfloat16):
            drawn = decoder(latents + _LATENT_NOISE * torch.randn_like(latents)).float()
        loss = F.l1_loss(drawn, pictures)
        for axis in (2, 3):
            loss = loss + 0.5 * F.l1_loss(drawn.diff(dim=axis), pictures.diff(dim=axis))
        trainer.learn(loss, step)


def _train_encoder(run: Run, vae: Any, steps: int) -> None:
    """L1 on the latents; the variance that ``AutoencoderKL`` also predicts is kept near zero."""
    source = random.Random(SEED + 3)
    trainer = Trainer(run, "encoder", [vae.encoder], steps, 3e-3)
    for step in trainer:
        pictures = _random_crops(source, *_CROPS[step % len(_CROPS)]).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16):
            mean, log_variance = vae.encoder(pictures).float().chunk(2, dim=1)
        loss = F.l1_loss(mean, block_latents(pictures)) + 0.01 * F.mse_loss(log_variance, torch.full_like(mean, -10.0))
        trainer.learn(loss, step)


@torch.no_grad()
def begin_as_block_colours(vae: Any) -> None:
    """Sets the starting weights: residual branches to zero, other convolutions to pass on what they get."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                nn.init.dirac_(module.conv_shortcut.weight)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            weight = upsampler.conv.weight
            others = weight[_PASSED_CHANNELS:].clone()
            nn.init.dirac_(weight)
            weight[_PASSED_CHANNELS:] = others
    for block in vae.encoder.down_blocks:
        for downsampler in block.downsamplers or ():
            weight = downsampler.conv.weight
            weight[:_PASSED_CHANNELS] = 0
            for channel in range(_PASSED_CHANNELS):
                weight[channel, channel, :2, :2] = 0.25
    _spread_colours(vae.decoder.conv_in, colour_channels=(0, 8, 16), unit=1 / 1.6)
    _spread_colours(vae.encoder.conv_in, colour_channels=(0, 1, 2), unit=1.0)


def _spread_colours(convolution: nn.Conv2d, colour_channels: tuple[int, int, int], unit: float) -> None:
    """The first channels carry each colour with both signs and two offsets: a group norm alone would lose its scale."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    weight[:_PASSED_CHANNELS] = 0
    bias[:_PASSED_CHANNELS] = 0
    for index, channel in enumerate(colour_channels):
        for row, (sign, offset) in enumerate(((1.0, 0.0), (-1.0, 0.0), (0.5, 0.5), (-0.5, 0.5))):
            weight[3 * row + index, channel, 1, 1] = sign * unit
            bias[3 * row + index] = offset
    bias[12], bias[13] = 1.5, -1.5


def _random_crops(source: random.Random, side: int, count: int) -> Tensor:
    """Squares of pictures, near the edge of an object; (count, 3, side, side)."""
    scenes = [training_scene(source) for _ in range(count)]
    left, top = torch.zeros(count), torch.zeros(count)
    for index, scene in enumerate(scenes):
        thing = source.choice(scene.things)
        reach = thing.radius * 256
        for origin, centre in ((left, thing.x), (top, thing.y)):
            wanted = centre * 256 + source.uniform(-reach, reach) - side / 2
            origin[index] = min(max(round(wanted), 0), 256 - side)
    pictures = draw_packed(pack(scenes), Window(side, side, 256, 256, left, top))
    return pictures.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _pixel_error(run: Run) -> dict[str, float]:
    """Mean absolute error of 2, of the decoder alone and of encoder and decoder."""
    vae = run.parts["vae"]
    source = random.Random(SEED + 4)
    packed = pack([training_scene(source) for _ in range(32)])
    pictures = draw_packed(packed.to(run.device), Window.whole(32, 256, 256))
    latents = {"decoder": block_latents(pictures), "both": vae.encode(pictures).latent_dist.mean}
    return {
        name: round(float(F.l1_loss(vae.decode(found, return_dict=False)[0], pictures)), 5)
        for name, found in latents.items()
    }
