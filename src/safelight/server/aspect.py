"""Sizes from aspect ratios."""

from __future__ import annotations

from safelight.model_card import ModelCard

MEGAPIXEL = 1024 * 1024

RATIO = "[1-9][0-9]?:[1-9][0-9]?"
"""As a pattern."""


def sized(
    card: ModelCard, width: int | None, height: int | None, ratio: str | None, area: float | None = None
) -> tuple[int, int]:
    """Width and height win; else the ratio (``"16:9"``) at ``area`` pixels or the model's own, in sides it draws."""
    wanted_width, wanted_height = float(card.default_width), float(card.default_height)
    if ratio is not None or area is not None:
        across, down = map(int, (ratio or "1:1").split(":"))
        area = area or wanted_width * wanted_height
        wanted_width, wanted_height = (area * across / down) ** 0.5, (area * down / across) ** 0.5
    return (
        round(wanted_width / card.size_multiple) * card.size_multiple if width is None else width,
        round(wanted_height / card.size_multiple) * card.size_multiple if height is None else height,
    )


def asked_size(
    card: ModelCard, width: int | None, height: int | None, ratio: str | None, area: float | None = None
) -> tuple[int, int] | None:
    """As ``sized``; ``None`` if nothing was asked, where a picture that is changed has a shape already."""
    if all(asked is None for asked in (width, height, ratio, area)):
        return None
    return sized(card, width, height, ratio, area)
