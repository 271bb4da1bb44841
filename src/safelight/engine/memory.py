"""How much of a device's memory is used."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from safelight.protocol import Memory

OnMemory = Callable[[Memory], None]


def memory_of(device: str) -> Memory:
    """Of a CUDA device what everybody uses, as that is what runs out; elsewhere what this process uses."""
    if device.startswith("cuda"):
        import torch

        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return Memory(total_bytes - free_bytes, total_bytes)
    return Memory(psutil.Process().memory_info().rss, psutil.virtual_memory().total)
