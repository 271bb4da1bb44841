"""How much of a device's memory is used, and may be."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from safelight.protocol import Memory

OnMemory = Callable[[Memory], None]


def limit_memory(device: str, limit_bytes: int) -> None:
    """From now on this process gets no more of a CUDA device; 0: as much as there is."""
    if limit_bytes and device.startswith("cuda"):
        import torch

        total_bytes = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total_bytes, 1.0), device)


def memory_of(device: str, limit_bytes: int = 0) -> Memory:
    """Of a CUDA device what everybody uses, as that is what runs out; with a limit, and elsewhere, what this process
    uses.
    """
    if not device.startswith("cuda"):
        return Memory(psutil.Process().memory_info().rss, psutil.virtual_memory().total)
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    allocated_bytes, reserved_bytes = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    if limit_bytes:
        return Memory(reserved_bytes, limit_bytes, allocated_bytes, reserved_bytes)
    return Memory(total_bytes - free_bytes, total_bytes, allocated_bytes, reserved_bytes)
