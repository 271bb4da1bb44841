"""What LoRA adapters cost: seconds for each step with none, one and two, and the first picture with a new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_session import EngineSession, Picture, Size, engine_session
from benchmarks.random_adapter import write_adapter
from safelight.engine.options import EngineOptions

_RANK = 16
_CACHE_MB = 4096

Put = Callable[[dict[str, Any]], None]


def measure_adapters(model: str, device: str, sizes: Sequence[Size], steps: int, folder: Path, put: Put) -> None:
    """Raises ``SystemExit`` if a picture without adapters is another one after a picture with them."""
    loras = folder / "loras"
    with engine_session(model, device) as session:
        made = [write_adapter(folder / f"{name}.safetensors", session.checkpoint, _RANK, seed) for seed, name in _NAMED]
        options = EngineOptions(cache_dir=str(folder / "cache"), loras_dir=str(loras), lora_cache_mb=_CACHE_MB)
        load_s = session.load(options)
        session.warm_up(sizes)
        put({"load_s": load_s, "rank": _RANK, "adapter_bytes": made[0].stat().st_size, "steps": steps})
        same = [_measure_size(session, size, steps, made, loras, put) for size in sizes]
    if not all(same):
        raise SystemExit("a picture without adapters has changed")


_NAMED = ((1, "one"), (2, "two"))


def _measure_size(session: EngineSession, size: Size, steps: int, made: Sequence[Path], loras: Path, put: Put) -> bool:
    """Whether pictures without adapters stay the same."""
    names = [f"{path.stem} {size[0]}" for path in made]
    for path, name in zip(made, names, strict=True):  # a file of its own for each size: nothing of it is kept yet
        loras.mkdir(exist_ok=True)
        shutil.copy(path, loras / f"{name}.safetensors")
    one, two = names
    kinds = (
        ("none", ()),
        ("one, its layers new", (one,)),
        ("another, its layers known", (two,)),
        ("the first again", (one,)),
        ("two", (one, two)),
        ("none again", ()),
    )
    plain: list[str] = []
    for kind, used in kinds:
        first, second, third = (session.draw(session.params(size, steps, used)) for _ in range(3))
        put({"size": f"{size[0]}x{size[1]}", "adapters": kind, **_figures(first, third, steps)})
        if not used:
            plain += [second.digest, third.digest]
    put({"size": f"{size[0]}x{size[1]}", "plain_pictures_equal_to_the_bit": len(set(plain)) == 1})
    return len(set(plain)) == 1


def _figures(first: Picture, later: Picture, steps: int) -> dict[str, float]:
    return {
        "step_s": later.stages["denoise"] / steps,
        "picture_s": later.seconds,
        "first_picture_s": first.seconds,
        "first_costs_s": first.seconds - later.seconds,
    }
