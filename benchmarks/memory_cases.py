"""What each memory mode needs and costs: device memory against the plan, seconds to load and for each picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from benchmarks.adapter_cases import Put
from benchmarks.engine_session import EngineSession, Size, engine_session
from safelight.engine.memory import memory_of
from safelight.engine.memory_plan import plan_memory
from safelight.engine.options import EngineOptions
from safelight.engine.working_memory import measure_step_bytes
from safelight.params import GenerationParams

_COUNTS = (1, 2)
_PICTURES = 2


def measure_mode(
    mode: str, limit_mb: int, model: str, device: str, sizes: Sequence[Size], steps: int, folder: Path, put: Put
) -> None:
    """One mode, or ``auto``, in a process that may use ``limit_mb`` of the card, as if that were all; 0: no limit."""
    with engine_session(model, device) as session:
        options = EngineOptions(memory=mode, cache_dir=str(folder / "cache"), memory_limit_mb=limit_mb)
        plan = plan_memory(session.checkpoint, device, options)
        put({"plan": str(plan), "planned_device_bytes": plan.device_bytes, "planned_host_bytes": plan.host_bytes})
        load_s = session.load(options)
        put({"load_s": load_s, "phases": session.manager.phase_seconds, **_memory(device)})
        for size in sizes:
            for count in _COUNTS:
                params = session.params(size, 2, count=count, prompt=f"a circle {size} {count}")
                put({"size": f"{size[0]}x{size[1]}", "count": count, **_bytes_per_pixel(session, params)})
        start_s = time.perf_counter()
        session.warm_up([max(sizes)])
        put({"warm_up_s": time.perf_counter() - start_s, "fit": to_builtins(session.manager.fit)})
        for size in sizes:
            for number in range(_PICTURES):  # each prompt is new, so the text encoders work too
                picture = session.draw(session.params(size, steps, prompt=f"a square {number} of {size}"))
            put({"size": f"{size[0]}x{size[1]}", "picture_s": picture.seconds, **_stages(picture.stages, steps)})
        put({"after": "pictures", **_memory(device)})


def _stages(stages: dict[str, float], steps: int) -> dict[str, float]:
    return {"text_s": stages["text"], "step_s": stages["denoise"] / steps, "decode_s": stages["decode"]}


def _bytes_per_pixel(session: EngineSession, params: GenerationParams) -> dict[str, float | None]:
    """At the peak of each stage, for all pictures of the job together but for decoding, which is one by one."""
    device, pixels = session.device, params.row_pixels * params.rows

    def measured(model: Any) -> dict[str, float | None]:
        begin, drawings = _peak(device, lambda: model.begin(params, None), model.mark)
        step = measure_step_bytes(model, params, device)
        decode, _ = _peak(device, lambda: model.decode(drawings[0]), model.mark)
        return {
            "begin_bytes": begin,
            "step_bytes_per_pixel": step,
            "decode_bytes_per_pixel": None if decode is None else decode / params.row_pixels,
            "pixels": pixels,
        }

    return session.with_model(measured)


def _peak(device: str, work: Callable[[], Any], mark: Callable[[], Callable[[], None]]) -> tuple[int | None, Any]:
    """Bytes that the work takes at most beside what was there, and what it gives."""
    if not device.startswith("cuda"):
        return None, work()
    import torch

    mark()()
    torch.cuda.reset_peak_memory_stats(device)
    before_bytes = torch.cuda.memory_allocated(device)
    result = work()
    mark()()
    return torch.cuda.max_memory_allocated(device) - before_bytes, result


def _memory(device: str) -> dict[str, Any]:
    """Of the device now, and at most since the last measurement."""
    said = memory_of(device)
    now = {
        "used_bytes": said.used_bytes,
        "allocated_bytes": said.allocated_bytes,
        "reserved_bytes": said.reserved_bytes,
    }
    if device.startswith("cuda"):
        import torch

        now["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        now["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return now
