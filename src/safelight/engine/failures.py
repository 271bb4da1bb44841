"""What can go wrong on a device, told apart, and the fault points by which tests make it go wrong."""

from __future__ import annotations

from safelight.errors import BadOutput, DeviceFault, DeviceUnavailable, GenerationError, OutOfMemory
from safelight.faults import fault
from safelight.params import GenerationParams

_BROKEN_CONTEXT = ("cuda error", "cublas_status", "cudnn_status", "device-side assert", "illegal memory access")
_OUT_OF_MEMORY = ("out of memory", "allocate memory")
"""CUDA has a class of its own for this, the CPU's allocator only this text."""

_LEAST_SPREAD = 1e-6


def reach(point: str) -> str | None:
    """Marks a fault point. Raises what ``cuda``, ``oom`` and ``gone`` stand for; other actions are the caller's."""
    action = fault(point)
    if action == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if action == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if action == "gone":
        raise DeviceUnavailable("the device is not there any more")
    return action


def failure_of(error: RuntimeError, params: GenerationParams) -> GenerationError | None:
    """The error of ours that a library's error stands for, ``None`` for one that only the log can explain.

    After an error of the second kind every further call on the device fails, or worse, returns nonsense.
    """
    text = str(error).lower()
    if is_out_of_memory(error):
        return OutOfMemory(f"{params.width}x{params.height} does not fit into the memory: ask for less")
    if type(error).__name__ == "AcceleratorError" or any(sign in text for sign in _BROKEN_CONTEXT):
        return DeviceFault("the device failed while it made the image")
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a library ran out of the device's or the host's memory."""
    return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def check_picture(*, is_finite: bool, spread: float) -> None:
    """Raises ``BadOutput`` for NaN, infinity, or one flat colour; ``spread`` is largest minus smallest value."""
    if not is_finite:
        raise BadOutput("the model's output is not a picture: it holds NaN or infinity")
    if spread < _LEAST_SPREAD:
        raise BadOutput("the model's output is not a picture: it is one flat colour")
