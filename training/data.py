"""Endless training data without files: scenes and captions from the CPU's cores, pictures and latents on the device."""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training import tokens
from training.blocks import block_latents
from training.captions import varied_caption
from training.drawing import Window, draw_packed, pack
from training.scenes import training_scene

DROPPED_CAPTIONS = 0.1

_MAIN_SIZE = (256, 256)
_OTHER_SIZES = ((192, 192), (256, 192), (192, 256), (320, 256), (256, 320), (384, 384))
_OTHER_EVERY = 10
_AHEAD = 32
_FEW_CORES = 4
_MOST_PROCESSES = 8

_Made = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Batch:
    """``clean`` (batch, tokens, 4 x channels); ids (batch, length); ``image_ids`` (tokens, 3)."""

    clean: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    image_ids: Tensor
    is_main_size: bool


def batches(count: int, seed: int, device: torch.device, first_step: int = 0) -> Iterator[Batch]:
    """Batches of ``count`` for ever, the same for the same seed; every tenth is half as large and of another size.

    On a machine with few cores they are made in between, otherwise ahead, by processes of their own.
    """
    cores = os.cpu_count() or 1
    processes = min(cores - 2, _MOST_PROCESSES)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn")) if cores > _FEW_CORES else None
    coming: deque[Future[_Made]] = deque()
    step = first_step
    try:
        while True:
            while pool is not None and len(coming) < _AHEAD:
                coming.append(pool.submit(_make, count, seed, step + len(coming)))
            made = coming.popleft().result() if pool is not None else _make(count, seed, step)
            yield _finish(made, _size(step), device)
            step += 1
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _size(step: int) -> tuple[int, int]:
    if step % _OTHER_EVERY != _OTHER_EVERY - 1:
        return _MAIN_SIZE
    return _OTHER_SIZES[(step // _OTHER_EVERY) % len(_OTHER_SIZES)]


def _make(count: int, seed: int, step: int) -> _Made:
    """(packed scenes, CLIP's ids, T5's ids) of one batch."""
    source = random.Random(seed * 1_000_003 + step)
    width, height = _size(step)
    if (width, height) != _MAIN_SIZE:
        count //= 2
    scenes = [training_scene(source, width / height) for _ in range(count)]
    captions = ["" if source.random() < DROPPED_CAPTIONS else varied_caption(scene, source) for scene in scenes]
    return pack(scenes).numpy(), *token_arrays(captions)


def _finish(made: _Made, size: tuple[int, int], device: torch.device) -> Batch:
    packed, clip_ids, t5_ids = (torch.from_numpy(part) for part in made)
    latents = block_latents(draw_packed(packed, Window.whole(len(packed), *size), device))
    positions = image_ids(latents.shape[2] // 2, latents.shape[3] // 2, device)
    return Batch(pack_latents(latents), clip_ids.to(device), t5_ids.to(device), positions, size == _MAIN_SIZE)


def token_ids(captions: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids for CLIP and T5, each (batch, length)."""
    clip_ids, t5_ids = (torch.from_numpy(ids).to(device) for ids in token_arrays(captions))
    return clip_ids, t5_ids


def token_arrays(captions: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As ``token_ids``, in the form that goes from process to process."""
    clip_ids, t5_ids = (np.array(tokens.encode(captions, with_start=start), np.int64) for start in (True, False))
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
