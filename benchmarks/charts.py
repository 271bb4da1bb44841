"""Two kinds of chart as SVG by hand: lines over a number, and bars beside a reference. 720 pixels wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720

_INK, _FAINT, _GRID, _PAPER = "#1f2328", "#59636e", "#e4e7eb", "#ffffff"
_OURS, _THEIRS = "#c2410c", "#a3acb6"
COLOURS = (_OURS, "#0f766e", "#4338ca", "#b45309")
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_MARGIN = 16
_HEAD = 62
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Points (x, y) in the order of x; a faint one is dashed, for what the others are held against."""

    name: str
    points: Sequence[tuple[float, float]]
    is_faint: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram with its own axes, from zero; units stand in the titles."""

    title: str
    x_title: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Bar:
    """A value, and what it is held against."""

    label: str
    value: float
    reference: float | None = None


def line_chart(title: str, note: str, panels: Sequence[Panel], height: int = 340) -> str:
    """Panels side by side, as an SVG document."""
    width = (WIDTH - 2 * _MARGIN) / len(panels)
    parts = [
        part
        for index, panel in enumerate(panels)
        for part in _panel(panel, _MARGIN + index * width, _HEAD, width, height - _HEAD)
    ]
    return _document(title, note, height, parts)


def bar_chart(title: str, note: str, unit: str, bars: Sequence[Bar], names: tuple[str, str]) -> str:
    """A row for each bar, its reference below it; ``names`` say what the two are. As an SVG document."""
    left, row, thick = 190, 50, 17
    scale = (WIDTH - left - 110) / max([*(bar.value for bar in bars), *(bar.reference or 0.0 for bar in bars)])
    parts = [*_legend([(names[0], _OURS, False), (names[1], _THEIRS, False)], left, _HEAD + 8)]
    for index, bar in enumerate(bars):
        y = _HEAD + 26 + index * row
        parts.append(_text(left - 12, y + thick + 3, bar.label, anchor="end"))
        pair = [(bar.value, _OURS, _INK)] + ([] if bar.reference is None else [(bar.reference, _THEIRS, _FAINT)])
        for place, (value, fill, ink) in enumerate(pair):
            top, length = y + place * (thick + 2), max(value * scale, 1.0)
            parts.append(f'<rect x="{left}" y="{top}" width="{length:.1f}" height="{thick}" rx="2" fill="{fill}"/>')
            parts.append(_text(left + length + 8, top + thick - 4, f"{_number(value)} {unit}", fill=ink))
    return _document(title, note, _HEAD + 26 + len(bars) * row + 6, parts)


def _document(title: str, note: str, height: int, parts: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{_FONT}" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{_PAPER}" stroke="{_GRID}"/>',
        _text(_MARGIN, 28, title, size=17, weight=600),
        _text(_MARGIN, 47, note, fill=_FAINT, size=12),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _panel(panel: Panel, x: float, y: float, width: float, height: float) -> list[str]:
    left, right, top, bottom = x + 38, x + width - 12, y + 44, y + height - 48
    places = [place for line in panel.lines for place in line.points]
    x_ticks, y_ticks = (_ticks(max(place[axis] for place in places)) for axis in (0, 1))

    def at(place: tuple[float, float]) -> tuple[float, float]:
        across, up = place[0] / x_ticks[-1], place[1] / y_ticks[-1]
        return left + across * (right - left), bottom - up * (bottom - top)

    parts = [_text(x + 4, y + 14, panel.title, weight=600)]
    for tick in y_ticks:
        height_y = at((0, tick))[1]
        parts.append(f'<path d="M{left:.1f} {height_y:.1f}H{right:.1f}" stroke="{_GRID}"/>')
        parts.append(_text(left - 6, height_y + 4, _number(tick), anchor="end", fill=_FAINT, size=12))
    for tick in x_ticks:
        parts.append(_text(at((tick, 0))[0], bottom + 18, _number(tick), anchor="middle", fill=_FAINT, size=12))
    parts.append(_text((left + right) / 2, bottom + 36, panel.x_title, anchor="middle", fill=_FAINT, size=12))
    colours = iter(COLOURS)
    styles = [(line.name, _THEIRS if line.is_faint else next(colours), line.is_faint) for line in panel.lines]
    for line, (_, colour, _) in zip(panel.lines, styles, strict=True):
        parts += _curve([at(place) for place in line.points], colour, is_faint=line.is_faint)
    return [*parts, *_legend(styles, x + 4, y + 32)]


def _curve(places: Sequence[tuple[float, float]], colour: str, *, is_faint: bool) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if is_faint else ""
    curve = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return [curve] if is_faint else [curve, *dots]


def _legend(entries: Sequence[tuple[str, str, bool]], x: float, y: float) -> list[str]:
    parts = []
    for name, colour, is_faint in entries:
        dash = ' stroke-dasharray="5 4"' if is_faint else ""
        parts.append(f'<path d="M{x:.1f} {y - 4:.1f}h16" stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(_text(x + 21, y, name, size=12))
        x += 36 + 6.6 * len(name)
    return parts


def _text(
    x: float, y: float, content: str, *, anchor: str = "start", fill: str = _INK, size: int = 13, weight: int = 400
) -> str:
    style = f'text-anchor="{anchor}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(content)}</text>'


def _ticks(largest: float) -> list[float]:
    """From zero to at least ``largest`` in steps of 1, 2 or 5 times a power of ten."""
    least = max(largest, 1e-9) / _TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
    return [index * step for index in range(math.ceil(largest / step * 0.999) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
