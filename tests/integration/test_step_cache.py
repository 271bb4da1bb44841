"""Which steps are computed, and what stands in for the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from safelight.engine.flux.step_cache import StepCache


def _drawing(step: int, steps: int) -> Any:
    return SimpleNamespace(
        step=step, params=SimpleNamespace(steps_per_image=steps), velocities=[], sigma=1 - step / steps
    )


@pytest.mark.parametrize(
    ("interval", "steps", "computed"),
    [
        (1, 6, [0, 1, 2, 3, 4, 5]),
        (2, 12, [0, 1, 2, 4, 6, 8, 10, 11]),
        (3, 12, [0, 1, 2, 5, 8, 10, 11]),
        (3, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_the_first_three_and_the_last_two_steps_are_always_computed(
    interval: int, steps: int, computed: list[int]
) -> None:
    cache = StepCache(interval)
    assert [step for step in range(steps) if cache.computes(_drawing(step, steps))] == computed


def test_what_is_left_out_lies_on_the_line_through_the_last_two() -> None:
    cache = StepCache(2)
    drawing = _drawing(0, 10)
    for step in (0, 1, 2):
        drawing.step, drawing.sigma = step, 1 - step / 10
        cache.keep(drawing, torch.full((1, 2), 5.0 + step))
    drawing.step, drawing.sigma = 3, 0.7
    assert torch.allclose(cache.extrapolated(drawing), torch.full((1, 2), 8.0))
    assert len(drawing.velocities) == 2
