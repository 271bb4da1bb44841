"""The benchmark of adapters, switches, memory and formats runs; its figures are for a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_models
from benchmarks.random_transformer_file import KINDS, write_transformer_file
from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL


@pytest.mark.parametrize("kind", KINDS)
def test_random_transformer_files_are_read_as_such(kind: str, tmp_path: Path) -> None:
    base = open_checkpoint(EMBEDDED_MODEL).path
    config: dict[str, Any] = json.loads((base / "transformer" / "config.json").read_text())
    path = write_transformer_file(tmp_path, config, kind)
    checkpoint = open_checkpoint(str(path), base_model=str(base))
    (transformer,) = [part for part in checkpoint.components if part.name == "transformer"]
    assert transformer.weight_count == next(
        part.weight_count for part in open_checkpoint(EMBEDDED_MODEL).components if part.name == "transformer"
    )


@pytest.mark.slow
def test_every_part_runs_at_small_sizes(tmp_path: Path) -> None:
    output = tmp_path / "models.json"
    assert bench_models.main(["--quick", "--timeout", "400", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert all(figures[-1]["exit_code"] == 0 for name, figures in found.items() if name.partition(":")[0] in _PARTS)
    assert found["adapters"][-2]["plain_pictures_equal_to_the_bit"]
    assert [figures["format"] for figures in found["formats"][:-1]] == ["as it is", *KINDS]


_PARTS = ("adapters", "switch", "memory", "formats")
