"""The checkpoint of an engine without a model, for tests of everything around one."""

from __future__ import annotations

from pathlib import Path

from safelight.checkpoint.component import Checkpoint, Component
from safelight.checkpoint.directory import COMPONENTS
from safelight.config import STUB_MODEL
from safelight.model_card import ModelCard

STUB = Checkpoint(
    Path(),
    tuple(Component(name, "", "", 1_000_000, None) for name in COMPONENTS),
    ModelCard(
        id=STUB_MODEL,
        title="Stub engine",
        description="Draws coloured noise, for tests of everything around an engine.",
        default_width=64,
        default_height=64,
        min_size=16,
        default_num_inference_steps=4,
        max_num_inference_steps=200,
        max_sequence_length=64,
    ),
)
