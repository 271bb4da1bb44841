"""When previews are shown, and that the linear map is one; what they show is tested with the embedded model."""

from __future__ import annotations

import pytest

from safelight.engine.previews import preview_steps


@pytest.mark.parametrize(
    ("steps", "count", "shown"),
    [
        (28, 0, set()),
        (28, 1, {14}),
        (28, 3, {7, 14, 21}),
        (4, 3, {1, 2, 3}),
        (2, 3, {1}),
        (1, 3, set()),
    ],
)
def test_previews_are_spread_evenly_and_never_after_the_last_step(steps: int, count: int, shown: set[int]) -> None:
    assert preview_steps(steps, count) == shown


def test_every_step_can_be_shown() -> None:
    for steps in range(1, 30):
        for count in range(11):
            shown = preview_steps(steps, count)
            assert len(shown) <= count
            assert all(1 <= step < steps for step in shown)
