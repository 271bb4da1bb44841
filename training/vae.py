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

_WIDTH = 256
_CROP = 128
_WHOLE_EVERY = 4
"""Most steps see crops near an edge of an object, since they teach the same for less; every fourth, whole pictures."""

_MAX_LATENT_NOISE = 0.25
_PASSED_CHANNELS = 16


def train_vae(run: Run, steps: int, batch_size: int) -> None:
    """The decoder for ``steps``, the encoder for half as many."""
    vae = run.parts["vae"].to(memory_format=torch.channels_last)
    begin_as_block_colours(vae)
    crops = max(batch_size // 5, 4)
    _train_decoder(run, vae.decoder, steps, crops)
    _train_encoder(run, vae, steps // 2, crops)
    error = _pixel_error(run)
    run.log["vae_mean_pixel_error"] = error
    run.say(f"vae: mean pixel error {error}")


def _train_decoder(run: Run, decoder: nn.Module, steps: int, crops: int) -> None:
    """L1 on pixels and on their differences; from latents with some noise, since the transformer's are not exact."""
    trainer = Trainer(run, "decoder", [decoder], steps, 3e-3)
    _compile(run, decoder)
    for step in trainer:
        pictures, stance = _pictures(run, step, crops)
        latents = block_latents(pictures)
        noise = _MAX_LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=run.device) ** 2
        with stance, torch.autocast(run.device.type, torch.bfloat16):
            drawn = decoder(latents + noise * torch.randn_like(latents)).float()
        loss = F.l1_loss(drawn, pictures)
        for axis in (2, 3):
            loss = loss + 0.5 * F.l1_loss(drawn.diff(dim=axis), pictures.diff(dim=axis))
        trainer.learn(loss, step)


def _train_encoder(run: Run, vae: Any, steps: int, crops: int) -> None:
    """L1 on the latents; the variance that ``AutoencoderKL`` also predicts is kept near zero."""
    trainer = Trainer(run, "encoder", [vae.encoder], steps, 3e-3)
    _compile(run, vae.encoder)
    for step in trainer:
        pictures, stance = _pictures(run, step, crops)
        with stance, torch.autocast(run.device.type, torch.bfloat16):
            mean, log_variance = vae.encoder(pictures).float().chunk(2, dim=1)
        loss = F.l1_loss(mean, block_latents(pictures)) + 0.01 * F.mse_loss(log_variance, torch.full_like(mean, -10.0))
        trainer.learn(loss, step)


def _compile(run: Run, part: nn.Module) -> None:
    if run.device.type == "cuda":
        part.compile()


def _pictures(run: Run, step: int, crops: int) -> tuple[Tensor, Any]:
    """The pictures of one step, and the way to run it: only crops run compiled."""
    source = random.Random(SEED + step)
    whole = step % _WHOLE_EVERY == 0
    pictures = _random_crops(source, *((_WIDTH, -(-crops // 4)) if whole else (_CROP, crops)), run.device)
    return pictures, torch.compiler.set_stance("force_eager" if whole else "default")


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


def _random_crops(source: random.Random, side: int, count: int, device: torch.device) -> Tensor:
    """Squares of pictures, near the edge of an object; (count, 3, side, side)."""
    scenes = [training_scene(source) for _ in range(count)]
    left, top = torch.zeros(count), torch.zeros(count)
    for index, scene in enumerate(scenes):
        thing = source.choice(scene.things)
        reach = thing.radius * _WIDTH
        for origin, centre in ((left, thing.x), (top, thing.y)):
            wanted = centre * _WIDTH + source.uniform(-reach, reach) - side / 2
            origin[index] = min(max(round(wanted), 0), _WIDTH - side)
    pictures = draw_packed(pack(scenes), Window(side, side, _WIDTH, _WIDTH, left, top), device)
    return pictures.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _pixel_error(run: Run) -> dict[str, float]:
    """Mean absolute error of 2, of the decoder alone and of encoder and decoder."""
    vae = run.parts["vae"]
    source = random.Random(SEED + 4)
    packed = pack([training_scene(source) for _ in range(32)])
    pictures = draw_packed(packed, Window.whole(32, _WIDTH, _WIDTH), run.device)
    with torch.compiler.set_stance("force_eager"):
        latents = {"decoder": block_latents(pictures), "both": vae.encode(pictures).latent_dist.mean}
        return {
            name: round(float(F.l1_loss(vae.decode(found, return_dict=False)[0], pictures)), 5)
            for name, found in latents.items()
        }
