"""The served model, as far as its files tell: before, while and after they are readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safelight.config import Config
from safelight.errors import CheckpointInvalid, CheckpointNotFound, Unavailable
from safelight.model_list import ModelEntry
from safelight.server.served_model import ServedModel
from tests.unit.fake_checkpoint import WEIGHT_BYTES, write_checkpoint

pytestmark = pytest.mark.anyio


def _served(model: str, **entry: Any) -> ServedModel:
    return ServedModel(ModelEntry(model=model, **entry), Config())


def test_before_the_files_are_read_the_card_is_not_available_yet() -> None:
    model = _served("a/model")
    with pytest.raises(Unavailable, match="still being read") as caught:
        _ = model.card
    assert caught.value.retry_after_s == 1
    assert (model.weight_bytes, model.components_total) == (0, 0)


async def test_after_a_refresh_card_and_bytes_are_known(checkpoint_dir: Path) -> None:
    model = _served(str(checkpoint_dir))
    await model.refresh()
    assert (model.card.id, model.weight_bytes, model.components_total) == ("test/tiny", WEIGHT_BYTES, 7)


async def test_files_that_broke_and_were_repaired_are_noticed(tmp_path: Path) -> None:
    model = _served(str(tmp_path / "model"))
    with pytest.raises(CheckpointNotFound):
        await model.refresh()
    with pytest.raises(CheckpointNotFound):
        _ = model.card
    folder = write_checkpoint(tmp_path / "model")
    await model.refresh()
    assert model.card.id == "test/tiny"
    (folder / "model_index.json").unlink()
    with pytest.raises(CheckpointInvalid):
        await model.refresh()
    with pytest.raises(CheckpointInvalid):
        _ = model.card


async def test_a_name_of_its_own_is_its_id_and_the_others_still_mean_it(checkpoint_dir: Path) -> None:
    named, unnamed = _served(str(checkpoint_dir), name="mine"), _served(str(checkpoint_dir))
    assert (named.id, unnamed.id) == ("mine", str(checkpoint_dir))
    for model in (named, unnamed):
        await model.refresh()
    assert (named.name, named.id, named.other_names) == ("mine", "mine", (str(checkpoint_dir), "test/tiny"))
    assert (unnamed.name, unnamed.id) == (str(checkpoint_dir), "test/tiny")


async def test_settings_of_its_own_hold_for_it(checkpoint_dir: Path) -> None:
    model = _served(str(checkpoint_dir), own={"dtype": "float32", "idle_unload_s": 5.0})
    assert (model.config.dtype, model.config.idle_unload_s, model.config.model) == ("float32", 5.0, str(checkpoint_dir))


@pytest.mark.parametrize(
    ("device", "own", "bytes_per_item"),
    [("cpu", {}, 4), ("cuda:1", {}, 2), ("cuda:1", {"dtype": "float32"}, 4), ("cuda:1", {"precision": "fp8"}, 2)],
)
async def test_what_it_takes_on_a_device_is_what_its_number_format_takes_there(
    device: str, own: dict[str, str], bytes_per_item: int, checkpoint_dir: Path
) -> None:
    model = _served(str(checkpoint_dir), own=own)
    assert model.loaded_bytes(device) == 0
    await model.refresh()
    in_float32 = _served(str(checkpoint_dir), own={"dtype": "float32"})
    await in_float32.refresh()
    assert model.loaded_bytes(device) == in_float32.loaded_bytes("cpu") * bytes_per_item // 4 > 0
