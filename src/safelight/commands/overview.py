"""A server at a glance: what ``safelight top`` shows, as lines."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from safelight.commands.job_text import progress_text, prompt_of, short_id, time_text
from safelight.commands.server_feed import View
from safelight.status_text import duration_text, is_loading, load_line, state_style, step_piece
from safelight.terminal import Look, Piece, fitted, printable

_STEP_CELLS = 20
_QUEUE_CELLS = 20
_SHOWN_WAITING = 5
_SHOWN_ERRORS = 5


def overview(view: View, url: str, columns: int, look: Look) -> list[str]:
    """Lines of at most so many columns."""
    if view.status is None:
        return [fitted([Piece(url), Piece(view.trouble or "connecting", "33")], columns, look)]
    lines = [_header(view, view.status, columns, look), _address(view, url, columns, look), ""]
    lines += [_queue(view.status, columns, look), ""]
    prompts = {job["id"]: prompt_of(job) for job in view.jobs}
    models = view.status["models"] if len(view.status["models"]) > 1 else []
    lines += [_model(model, columns, look) for model in models] + [""] * bool(models)
    for worker in view.status["workers"]:
        lines += _worker(worker, prompts, columns, look, names_model=bool(models))
    lines += _waiting(view.jobs, columns, look)
    return lines + _errors(view, columns, look)


def _header(view: View, status: dict[str, Any], columns: int, look: Look) -> str:
    uptime_s = status["uptime_s"] + (0 if view.trouble else time.monotonic() - view.received_s)
    return fitted(
        [
            Piece(f"safelight {status['version']}", "1"),
            Piece(status["status"], state_style(status["status"])),
            Piece(printable(status["model"])),
            Piece(f"up {duration_text(uptime_s)}"),
            Piece(f"{status['images_per_min']:.3g} images/min"),
        ],
        columns,
        look,
    )


def _address(view: View, url: str, columns: int, look: Look) -> str:
    pieces = [Piece(view.trouble, "1;33")] if view.trouble else []
    return fitted([*pieces, Piece(url, "2")], columns, look)


def _queue(status: dict[str, Any], columns: int, look: Look) -> str:
    waiting, limit = status["queue"]["waiting"], status["queue"]["limit"]
    bar = Piece(f"{waiting} of {limit} waiting", bar_share=waiting / limit, max_cells=_QUEUE_CELLS)
    pieces = [bar, Piece(f"{status['queue']['running']} running")]
    if status["storage"]["error"]:
        pieces.insert(0, Piece(printable(status["storage"]["error"]), "31"))
    return "queue    " + fitted(pieces, columns - 9, look)


def _model(model: dict[str, Any], columns: int, look: Look) -> str:
    pieces = [Piece(printable(model["id"]), "1"), Piece(model["state"], state_style(model["state"]))]
    pieces += [Piece(" ".join(model["loaded_on"]))] if model["loaded_on"] else []
    pieces += [Piece("pinned")] if model["pinned"] else []
    pieces += [Piece(f"{model['waiting']} waiting")] if model["waiting"] else []
    pieces += [Piece(printable(model["error"]), "31")] if model["error"] else []
    return "model    " + fitted(pieces, columns - 9, look)


def _worker(
    worker: dict[str, Any], prompts: dict[str, str], columns: int, look: Look, *, names_model: bool
) -> list[str]:
    pieces = [Piece(worker["device"], "1"), Piece(worker["state"], state_style(worker["state"]))]
    if names_model and worker["model"]:
        pieces.append(Piece(printable(worker["model"])))
    if worker["restarts"]:
        pieces.append(Piece(f"{worker['restarts']} restart{'s' if worker['restarts'] > 1 else ''}"))
    if worker["error"]:
        pieces.append(Piece(printable(worker["error"]), "31"))
    lines = [f"worker {worker['id']} " + fitted(pieces, columns - 9, look)]
    if is_loading(worker):
        lines.append("         " + load_line(worker | {"error": None}, columns - 9, look))
    if coming := worker["coming"]:
        lines.append("         " + fitted([Piece(f"{printable(coming['model'])} comes next")], columns - 9, look))
        lines.append("         " + load_line(coming, columns - 9, look))
    for job in worker["jobs"]:
        described = [step_piece(job, _STEP_CELLS), Piece(short_id(job["id"]), "2"), Piece(prompts.get(job["id"], ""))]
        lines.append("         " + fitted([piece for piece in described if piece.text], columns - 9, look))
    return lines


def _waiting(jobs: list[dict[str, Any]], columns: int, look: Look) -> list[str]:
    waiting = sorted((job for job in jobs if job["queue_position"] is not None), key=lambda job: job["queue_position"])
    lines = ["", look.styled("waiting", "1")] if waiting else []
    for job in waiting[:_SHOWN_WAITING]:
        pieces = [Piece(short_id(job["id"]), "2"), Piece(progress_text(job)), Piece(time_text(job))]
        lines.append("         " + fitted([*[p for p in pieces if p.text], Piece(prompt_of(job))], columns - 9, look))
    if len(waiting) > _SHOWN_WAITING:
        lines.append(f"         and {len(waiting) - _SHOWN_WAITING} more")
    return lines


def _errors(view: View, columns: int, look: Look) -> list[str]:
    failed = [job for job in view.jobs if job["status"] == "failed"][:_SHOWN_ERRORS]
    lines = ["", look.styled("last errors", "1")] if failed else []
    for job in failed:
        ended = datetime.fromisoformat(job["completed_at"]).astimezone().strftime("%H:%M:%S")
        sentence = printable(f"{job['error_code']}: {job['error']}")
        lines.append(f"{ended} " + fitted([Piece(short_id(job["id"]), "2"), Piece(sentence, "31")], columns - 9, look))
    return lines
