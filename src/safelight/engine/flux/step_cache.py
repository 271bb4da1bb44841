"""Skipping transformer calls in the middle of a picture, where the velocity changes little from step to step.

A fixed schedule, and a straight line through the last two computed velocities in its gaps: the first-order case of
TaylorSeer (arXiv 2503.06923), applied to the output instead of every block. It changes pictures, so it is off unless
asked for; ``docs/performance.md`` says what it costs.
"""

from __future__ import annotations

import torch

from safelight.engine.flux.drawing import Drawing

_ALWAYS_FIRST = 3
_ALWAYS_LAST = 2


class StepCache:
    """Computes every ``interval``-th step between the first three and the last two."""

    def __init__(self, interval: int) -> None:
        self._interval = interval

    def computes(self, drawing: Drawing) -> bool:
        """Whether the drawing's next step needs the transformer."""
        middle = drawing.step - _ALWAYS_FIRST
        is_edge = middle < 0 or drawing.step >= drawing.params.steps_per_image - _ALWAYS_LAST
        return self._interval == 1 or is_edge or (middle + 1) % self._interval == 0

    def keep(self, drawing: Drawing, velocity: torch.Tensor) -> None:
        """Remembers what the transformer said at the drawing's present step."""
        if self._interval > 1:
            drawing.velocities = [*drawing.velocities[-1:], (drawing.sigma, velocity)]

    def extrapolated(self, drawing: Drawing) -> torch.Tensor:
        """The velocity that the transformer would have given, about."""
        (before, earlier), (last, later) = drawing.velocities
        return later + (later - earlier) * ((drawing.sigma - last) / (last - before))
