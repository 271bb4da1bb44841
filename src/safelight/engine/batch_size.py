"""How many rows gain by sharing a step, measured on the device that will do it."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import msgspec

from safelight.errors import JobCancelled
from safelight.params import MAX_IMAGES, GenerationParams

log = logging.getLogger(__name__)

_ROWS = (1, 2, 4, 8, 16)
_FIRST_USES = 2
_MEASURED_STEPS = 3
_LEAST_GAIN = 1.05
_LONGEST_S = 1.0
"""That one row count is measured for, and that a step of more rows may take."""


def measure_batch_tokens(model: Any, params: GenerationParams, max_rows: int, cancelled: threading.Event) -> int:
    """Tokens of the largest step whose rows each take 5 % less time than those of half as many; one row's at least.

    ``params`` should be of a small size: beyond these tokens a step takes longer in proportion, whatever the size. A
    device that takes seconds for one row is busy with it, and is not asked for more.
    """
    tokens = model.tokens(params)
    best_rows, best_s = 1, float("inf")
    for rows in (rows for rows in _ROWS if not max_rows or rows <= max_rows):
        if cancelled.is_set():
            raise JobCancelled("warming up was cancelled")
        try:
            seconds = _seconds_per_row(model, params, rows)
        except RuntimeError as error:
            log.debug("a step of %d rows is too much: %s", rows, type(error).__name__)
            model.free_memory()
            break
        log.debug("a step of %d rows takes %.2f ms a row", rows, seconds * 1e3)
        if seconds * _LEAST_GAIN > best_s:
            break
        best_rows, best_s = rows, seconds
        if seconds * rows > _LONGEST_S:
            break
    return int(best_rows * tokens)


def _seconds_per_row(model: Any, params: GenerationParams, rows: int) -> float:
    """The least of a few steps, without what first uses cost."""
    steps = _FIRST_USES + _MEASURED_STEPS
    drawings: list[Any] = []
    while len(drawings) < rows:
        count = min(rows - len(drawings), MAX_IMAGES)
        asked = msgspec.structs.replace(params, num_images=count, num_inference_steps=steps, true_cfg_scale=1.0)
        drawings += model.begin(asked, None)
    times_s: list[float] = []
    while len(times_s) < steps and sum(times_s[1:]) < _LONGEST_S:  # the first may compile
        start_s = time.perf_counter()
        model.step(drawings)
        model.mark()()
        times_s.append(time.perf_counter() - start_s)
    return min(times_s) / rows
