"""A server's state in one line, however wide the terminal is."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from safelight.server.pace import Throughput
from safelight.status_text import duration_text, live_lines
from safelight.terminal import LiveLines, Look, Piece, cells, clipped, fitted, is_capable, look_of, printable

PLAIN = Look()
_SGR = re.compile(r"\x1b\[[\d;]*m")


def worker(**members: Any) -> dict[str, Any]:
    defaults = {
        **dict.fromkeys(("component", "eta_s", "error", "phase")),
        **dict.fromkeys(("components_done", "components_total", "bytes_done", "bytes_total", "restarts"), 0),
    }
    return defaults | {"id": 0, "device": "cuda:0", "state": "ready", "jobs": []} | members


def status(*workers: dict[str, Any], **members: Any) -> dict[str, Any]:
    queue = {"waiting": members.pop("waiting", 0), "running": members.pop("running", 0), "limit": 64}
    defaults = {"status": "ready", "queue": queue, "images_per_min": 0.0, "storage": {"error": None}}
    return defaults | members | {"workers": list(workers)}


def job(step: int, total_steps: int = 28) -> dict[str, Any]:
    return {"id": "job_1", "request_id": "req_1", "step": step, "total_steps": total_steps}


LOADING = worker(
    state="loading", phase="weights", component="transformer", components_done=5, components_total=7,
    bytes_done=12_000_000_000, bytes_total=34_000_000_000, eta_s=71.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (status(worker()), " ready · idle"),
        (status(worker(), images_per_min=14.25), " ready · idle · 14.2 images/min"),
        (status(worker(jobs=[job(7)]), running=1, waiting=3), " ready · ━━━━────────────  7/28 · 3 waiting"),
        (
            status(worker(jobs=[job(14), job(2)]), worker(jobs=[job(1)]), running=3),
            " ready · ━━━━━━━━──────── 14/28 · batch of 2 · 3 running",
        ),
        (status(worker(), worker(device="cuda:1", state="failed"), status="degraded"), " degraded · cuda:1 failed"),
        (status(worker(state="draining"), status="draining", waiting=2), " draining · 2 kept"),
        (
            status(worker(), status="degraded", storage={"error": "no space is left"}),
            " degraded · no space is left",
        ),
    ],
)
def test_the_last_line_says_what_matters(shown: dict[str, Any], line: str) -> None:
    assert live_lines(shown, 100, PLAIN)[-1] == line


def test_a_load_has_a_bar_with_its_bytes_and_the_time_that_is_left() -> None:
    (bar, line) = live_lines(status(LOADING, status="loading", waiting=1), 120, PLAIN)
    assert bar == (
        " cuda:0 weights transformer 5/7 · ━━━━━━━━━━━╸────────────────────  35% · 12.0 of 34.0 GB · 1 min 11 s left"
    )
    assert line == " loading · 1 waiting"


def test_many_workers_that_load_do_not_fill_the_screen() -> None:
    lines = live_lines(status(*[LOADING] * 20, status="loading"), 100, PLAIN)
    assert len(lines) == 10 and lines[8] == " and 12 more"


@pytest.mark.parametrize("columns", range(1, 130))
@pytest.mark.parametrize("look", [Look(), Look(has_colour=True), Look(is_unicode=False)])
def test_no_line_is_as_wide_as_the_terminal(columns: int, look: Look) -> None:
    failed = worker(device="cuda:1", state="restarting", error="the worker was killed: 写真\n\x1b[2J" * 3, eta_s=3.0)
    shown = status(
        LOADING, failed, worker(jobs=[job(3), job(1)]), status="degraded", waiting=12, running=2, images_per_min=3.0
    )
    for line in live_lines(shown, columns, look):
        assert cells(_SGR.sub("", line)) <= max(columns - 1, 1)
        assert "\x1b[2J" not in line and "\n" not in line
        assert look.has_colour or "\x1b" not in line
        assert look.is_unicode or "写" in line or line.isascii() or cells(line) < columns


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (125, "2 min 5 s"), (12_000, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_wide_characters_count_twice_and_marks_not_at_all() -> None:
    assert (cells("abc"), cells("写真"), cells("e\u0301")) == (3, 4, 1)
    assert clipped("写真写真", 5, PLAIN) == "写真…"
    assert clipped("abc", 3, PLAIN) == "abc"
    assert printable("a\x1b[2J\nb") == "a [2J b"


def test_a_bar_is_there_from_nothing_to_everything() -> None:
    assert [PLAIN.bar(share, 4) for share in (0, 0.5, 0.6, 1, 7)] == ["────", "━━──", "━━╸─", "━━━━", "━━━━"]
    assert Look(is_unicode=False).bar(0.5, 4) == "##--"


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    pieces = [Piece("ready"), Piece("idle"), Piece("3 images/min")]
    assert [fitted(pieces, columns, PLAIN) for columns in (40, 20, 6, 3)] == [
        *("ready · idle · 3 images/min", "ready · idle", "ready", "re…"),
    ]


def test_the_cursor_ends_where_the_lines_begin_and_text_goes_above_them() -> None:
    live = LiveLines()
    assert live.draw(["one", "two"]) == "\rone\x1b[K\r\ntwo\x1b[K\x1b[J\x1b[1A\r"
    assert live.draw(["three"], above="log\n") == "\r\x1b[Jlog\nthree\x1b[K\x1b[J\r"
    assert live.draw([]) == "\r\x1b[J"


class _Stream(io.TextIOWrapper):
    def __init__(self, *, is_terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


def test_what_the_environment_says_of_the_terminal_counts() -> None:
    terminal, file = _Stream(is_terminal=True), _Stream(is_terminal=False)
    assert look_of(terminal, {"TERM": "xterm"}) == Look(has_colour=True)
    assert look_of(terminal, {"TERM": "xterm", "NO_COLOR": "1"}) == Look(has_colour=False)
    assert look_of(_Stream(is_terminal=True, encoding="ascii"), {"TERM": "xterm"}) == Look(True, is_unicode=False)
    assert not look_of(file, {"TERM": "xterm"}).has_colour
    assert [is_capable(terminal, {"TERM": term}) for term in ("xterm", "dumb")] == [True, False]
    assert not is_capable(terminal, {}) and not is_capable(file, {"TERM": "xterm"})


def test_throughput_counts_the_last_three_minutes() -> None:
    now_s = 1000.0
    throughput = Throughput(clock=lambda: now_s)
    assert throughput.images_per_min == 0.0
    now_s += 60
    throughput.add(3)
    assert throughput.images_per_min == pytest.approx(3.0)
    now_s += 140
    throughput.add(6)
    assert throughput.images_per_min == pytest.approx(3.0)
    now_s += 100
    assert throughput.images_per_min == pytest.approx(2.0)
    now_s += 100
    assert throughput.images_per_min == 0.0
