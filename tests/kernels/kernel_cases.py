"""The Triton kernels in its interpreter against the plain operations: a program of its own, which prints errors."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.flux.kernels import TritonOperations
from safelight.engine.flux.linears import Scaled
from safelight.engine.flux.operations import Operations
from safelight.engine.flux.shape import At, BatchShape, Norm
from safelight.engine.flux.vae import accelerate
from safelight.engine.flux.vae_kernels import add_bias, doubled, norm_silu

WIDTH, HEADS, SIZE = 96, 3, 32  # no powers of two but the head: lanes beyond the end must not count
SHAPES = (BatchShape(1, 5, 7), BatchShape(3, 5, 7), BatchShape(3, 5, 7).joint)


def at(number: int) -> At:
    return At(number * WIDTH, (number + 6) * WIDTH)


def meant(rows: torch.Tensor | Scaled) -> torch.Tensor:
    return rows.values.float() * rows.scales if isinstance(rows, Scaled) else rows.float()


def error(found: torch.Tensor | Scaled, expected: torch.Tensor | Scaled) -> float:
    difference = (meant(found) - meant(expected)).norm() / meant(expected).norm()
    return float(difference)


def block_errors(dtype: torch.dtype, *, float8: bool) -> list[float]:
    plain, kernels = Operations(float8=float8), TritonOperations(float8=float8)
    errors = []
    for shape in SHAPES:
        tokens, change = torch.randn(2, shape.all_tokens, WIDTH, dtype=dtype)
        modulation = 0.3 * torch.randn(shape.rows, 12 * WIDTH, dtype=dtype)
        norm = Norm(at(1), at(2))
        ours, theirs = tokens.clone(), tokens.clone()
        found = kernels.add_and_norm(ours, change.clone(), modulation, shape, at(0), norm)
        errors.append(error(found, plain.add_and_norm(theirs, change.clone(), modulation, shape, at(0), norm)))
        errors.append(error(ours, theirs))
        last = norm._replace(is_inner=False)
        errors.append(error(kernels.norm(tokens, modulation, shape, last), plain.norm(tokens, modulation, shape, last)))
        projected = torch.randn(shape.all_tokens, 3 * HEADS * SIZE, dtype=dtype)
        norms = (0.5 + torch.rand(2, SIZE, dtype=dtype)).repeat(2, 1) if not shape.text else 0.5 + torch.rand(4, SIZE)
        angles = torch.randn(shape.tokens, SIZE // 2)
        rope = angles.cos(), angles.sin()
        found_heads = kernels.query_key_value(projected.clone(), norms.to(dtype), rope, shape, HEADS)
        expected_heads = plain.query_key_value(projected, norms.to(dtype), rope, shape, HEADS)
        errors += [error(*pair) for pair in zip(found_heads, expected_heads, strict=True)]
    return errors


def quantising_errors() -> list[float]:
    kernels = TritonOperations(float8=True)
    first, second = torch.randn(9, 40), torch.randn(9, 72)
    hidden = F.gelu(second, approximate="tanh")
    return [
        error(kernels.rows(first), first),
        error(kernels._quantised(None, second), hidden),
        error(kernels._quantised(first, second), torch.cat([first, hidden], 1)),
        error(kernels._quantised(torch.zeros(3, 40), None), torch.zeros(3, 40) + 1e-9) - 1,
    ]


def vae_errors() -> list[float]:
    from diffusers import AutoencoderKL

    errors = []
    for channels, groups, height, width in ((32, 8, 9, 7), (24, 1, 16, 16), (48, 3, 40, 60)):
        norm = nn.GroupNorm(groups, channels)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        x, shift = 3 * torch.randn(2, channels, height, width) + 1, torch.randn(channels)
        expected = F.silu(norm(x + shift[:, None, None]))
        errors += [error(norm_silu(norm, x, shift), expected), error(norm_silu(norm, x), F.silu(norm(x)))]
        errors.append(error(doubled(x), F.interpolate(x, scale_factor=2.0, mode="nearest")))
        last = x.contiguous(memory_format=torch.channels_last)
        errors.append(
            error(add_bias(last.clone(memory_format=torch.channels_last), shift, last), 2 * x + shift[:, None, None])
        )
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
    )
    latents, pixels = torch.randn(2, 4, 6, 4), torch.rand(1, 3, 16, 24)
    decoded, encoded = vae.decode(latents).sample, vae.encode(pixels).latent_dist.mode()
    vae.to(memory_format=torch.channels_last)
    accelerate(vae.decoder)
    accelerate(vae.encoder)
    return [*errors, error(vae.decode(latents).sample, decoded), error(vae.encode(pixels).latent_dist.mode(), encoded)]


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.inference_mode():
        print(
            json.dumps(
                {
                    "float32": block_errors(torch.float32, float8=False),
                    "bfloat16": block_errors(torch.bfloat16, float8=False),
                    "float8": block_errors(torch.float32, float8=True),
                    "quantising": quantising_errors(),
                    "vae": vae_errors(),
                }
            )
        )
