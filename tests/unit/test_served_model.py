"""The served model, as far as its files tell: before, while and after they are readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.errors import CheckpointInvalid, CheckpointNotFound, ModelNotFound, Unavailable
from safelight.server.served_model import ServedModel
from tests.unit.fake_checkpoint import WEIGHT_BYTES, write_checkpoint

pytestmark = pytest.mark.anyio


def test_before_the_files_are_read_the_card_is_not_available_yet() -> None:
    model = ServedModel("a/model")
    with pytest.raises(Unavailable, match="still being read") as caught:
        _ = model.card
    assert caught.value.retry_after_s == 1
    assert (model.weight_bytes, model.components_total) == (0, 0)


async def test_after_a_refresh_card_and_bytes_are_known(checkpoint_dir: Path) -> None:
    model = ServedModel(str(checkpoint_dir))
    await model.refresh()
    assert (model.card.id, model.weight_bytes, model.components_total) == ("test/tiny", WEIGHT_BYTES, 7)


async def test_files_that_broke_and_were_repaired_are_noticed(tmp_path: Path) -> None:
    model = ServedModel(str(tmp_path / "model"))
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


@pytest.mark.parametrize("asked", [None, "test/tiny", "dall-e-2", "dall-e-3", "gpt-image-1", "chatgpt-image-latest"])
async def test_its_own_names_and_those_that_clients_hard_code_mean_it(asked: str | None, checkpoint_dir: Path) -> None:
    model = ServedModel(str(checkpoint_dir))
    await model.refresh()
    model.check_name(asked)
    model.check_name(str(checkpoint_dir))


@pytest.mark.parametrize("asked", ["", "test/tin", "TEST/TINY", "flux", "my-dall-e-2"])
async def test_any_other_name_is_not_found(asked: str, checkpoint_dir: Path) -> None:
    model = ServedModel(str(checkpoint_dir))
    await model.refresh()
    with pytest.raises(ModelNotFound, match="'test/tiny' is") as caught:
        model.check_name(asked)
    assert caught.value.param == "model"
