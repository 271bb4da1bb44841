"""The state of a server as lines of text: what ``/v1/status`` says, for people at a terminal of any width."""

from __future__ import annotations

from typing import Any

from safelight.terminal import Look, Piece, fitted, printable

_STATE_STYLE = {
    **dict.fromkeys(("ready", "busy", "succeeded"), "32"),
    "unloaded": "2",
    **dict.fromkeys(("starting", "loading", "warming", "degraded", "restarting", "draining", "running"), "33"),
    "failed": "1;31",
    "cancelled": "2",
}
_NOT_LOADING = ("ready", "busy", "draining", "unloaded", "failed")
_STEP_CELLS = 16
_LOAD_CELLS = 32
_MAX_BARS = 8


def state_style(state: str) -> str:
    """The colour of a state, as in ``ESC [ code m``."""
    return _STATE_STYLE.get(state, "")


def duration_text(seconds: float) -> str:
    """As people say it: ``7 s``, ``2 min 5 s``, ``3 h 20 min``."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def age_text(seconds: float) -> str:
    """In one unit: ``7 s``, ``2 min``, ``3 h``, ``4 d``."""
    whole = round(max(seconds, 0))
    for limit_s, unit_s, unit in ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h")):
        if whole < limit_s:
            return f"{whole // unit_s} {unit}"
    return f"{whole // 86400} d"


def live_lines(status: dict[str, Any], columns: int, look: Look) -> list[str]:
    """A bar for every worker that loads, and one line for all the rest; none as wide as the terminal."""
    coming = [worker["coming"] for worker in status["workers"] if worker.get("coming")]
    loading = [worker for worker in [*status["workers"], *coming] if is_loading(worker)]
    lines = [load_line(worker, columns - 2, look) for worker in loading[:_MAX_BARS]]
    if len(loading) > _MAX_BARS:
        lines.append(fitted([Piece(f"and {len(loading) - _MAX_BARS} more")], columns - 2, look))
    return [f" {line}" for line in (*lines, _summary(status, columns - 2, look))]


def is_loading(worker: dict[str, Any]) -> bool:
    """Whether it will be ready by itself, and is not yet."""
    return worker["state"] not in _NOT_LOADING


def load_line(worker: dict[str, Any], columns: int, look: Look) -> str:
    """How far one worker's load is: ``cpu weights transformer 5/7``, a bar, bytes, the time that is left."""
    pieces = [Piece(position(worker))]
    if worker["bytes_total"] and worker["state"] != "restarting":
        share = worker["bytes_done"] / worker["bytes_total"]
        pieces.append(Piece(f"{share:.0%}".rjust(4), bar_share=share, max_cells=_LOAD_CELLS))
        pieces.append(Piece(moved(worker)))
    if worker["eta_s"] and worker["eta_s"] >= 1:
        pieces.append(Piece(f"{duration_text(worker['eta_s'])} left"))
    if worker["error"]:
        pieces.append(Piece(printable(worker["error"]), "31"))
    return fitted(pieces, columns, look)


def position(worker: dict[str, Any]) -> str:
    """Device, phase, component, and how many components are done."""
    count = f"{worker['components_done']}/{worker['components_total']}" if worker["components_total"] else ""
    phase = "restarting" if worker["state"] == "restarting" else worker["phase"]
    return " ".join(part for part in (worker["device"], phase, worker["component"], count) if part)


def moved(worker: dict[str, Any]) -> str:
    """Bytes of weights that lie on the device, of all that will."""
    unit_bytes, unit = (1e9, "GB") if worker["bytes_total"] >= 1e9 else (1e6, "MB")
    return f"{worker['bytes_done'] / unit_bytes:.1f} of {worker['bytes_total'] / unit_bytes:.1f} {unit}"


def step_piece(job: dict[str, Any], max_cells: int = _STEP_CELLS) -> Piece:
    """The bar of a running job and its denoising steps."""
    step, total_steps = job["step"], job["total_steps"]
    text = f"{step:{len(str(total_steps))}}/{total_steps}"
    return Piece(text, bar_share=step / total_steps, max_cells=max_cells)


def _summary(status: dict[str, Any], columns: int, look: Look) -> str:
    state, waiting, running = status["status"], status["queue"]["waiting"], status["queue"]["running"]
    pieces = [Piece(state, state_style(state)), *_troubles(status)]
    jobs = [(worker["jobs"][0], len(worker["jobs"])) for worker in status["workers"] if worker["jobs"]]
    if jobs:
        oldest, mates = jobs[0]
        pieces.append(step_piece(oldest))
        if mates > 1:
            pieces.append(Piece(f"batch of {mates}"))
        if running > mates:
            pieces.append(Piece(f"{running} running"))
    elif not waiting and state == "ready":
        pieces.append(Piece("idle", "2"))
    if waiting:
        pieces.append(Piece(f"{waiting} {'kept' if state == 'draining' else 'waiting'}"))
    if status["images_per_min"]:
        pieces.append(Piece(f"{status['images_per_min']:.3g} images/min", "2"))
    return fitted(pieces, columns, look)


def _troubles(status: dict[str, Any]) -> list[Piece]:
    """What an operator would want to know at once."""
    pieces = [
        Piece(f"{worker['device']} {worker['state']}", state_style(worker["state"]))
        for worker in status["workers"]
        if worker["state"] in ("restarting", "failed")
    ]
    if status["storage"]["error"]:
        pieces.append(Piece(printable(status["storage"]["error"]), "31"))
    return pieces
