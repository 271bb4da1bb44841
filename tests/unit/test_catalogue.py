"""Which model a name means: its own, what its files say, and what clients hard-code."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.config import Config
from safelight.errors import CheckpointNotFound, ModelNotFound
from safelight.model_list import ModelEntry
from safelight.server.catalogue import Catalogue
from tests.unit.running_front import asked

pytestmark = pytest.mark.anyio


async def _catalogue(*entries: ModelEntry, aliases: str = "accept") -> Catalogue:
    catalogue = Catalogue(Config(models=entries, model=entries[0].model, model_aliases=aliases))
    await catalogue.refresh()
    return catalogue


ALIASES = ["dall-e-2", "dall-e-3", "gpt-image-1", "chatgpt-image-latest"]


@pytest.mark.parametrize("name", [None, "test/tiny", *ALIASES])
async def test_its_own_names_and_those_that_clients_hard_code_mean_it(name: str | None, checkpoint_dir: Path) -> None:
    catalogue = Catalogue(Config(model=str(checkpoint_dir)))
    await catalogue.refresh()
    assert catalogue.find(name) is catalogue.find(str(checkpoint_dir)) is catalogue.default


@pytest.mark.parametrize("name", ["", "test/tin", "TEST/TINY", "flux", "my-dall-e-2"])
async def test_any_other_name_is_not_found(name: str, checkpoint_dir: Path) -> None:
    catalogue = Catalogue(Config(model=str(checkpoint_dir)))
    await catalogue.refresh()
    with pytest.raises(ModelNotFound, match="'test/tiny' is") as caught:
        catalogue.find(name)
    assert caught.value.param == "model"


async def test_of_several_the_name_says_which_and_the_first_is_the_default(checkpoint_dir: Path) -> None:
    catalogue = await _catalogue(
        ModelEntry(model="safelight/stub", name="quick"), ModelEntry(model=str(checkpoint_dir), name="slow")
    )
    quick, slow = catalogue
    assert [catalogue.find(name) for name in (None, "quick", "safelight/stub", "gpt-image-1")] == [quick] * 4
    assert [catalogue.find(name) for name in ("slow", "test/tiny", str(checkpoint_dir))] == [slow] * 3
    with pytest.raises(ModelNotFound, match="'quick', 'slow' are"):
        catalogue.find("flux")


async def test_a_name_beats_an_alias_and_what_files_say(checkpoint_dir: Path) -> None:
    catalogue = await _catalogue(
        ModelEntry(model=str(checkpoint_dir)),
        ModelEntry(model="safelight/stub", name="gpt-image-1"),
        ModelEntry(model="safelight/stub", name="test/tiny"),
    )
    first, second, third = catalogue
    assert (catalogue.find("gpt-image-1"), catalogue.find("dall-e-3")) == (second, first)
    assert catalogue.find("test/tiny") is third


async def test_aliases_can_be_off(checkpoint_dir: Path) -> None:
    catalogue = await _catalogue(ModelEntry(model=str(checkpoint_dir)), aliases="off")
    with pytest.raises(ModelNotFound):
        catalogue.find("dall-e-3")


async def test_a_name_that_may_be_in_unreadable_files_is_their_error_and_not_unknown(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    catalogue = await _catalogue(ModelEntry(model="safelight/stub", name="quick"), ModelEntry(model=nowhere))
    with pytest.raises(CheckpointNotFound):
        catalogue.find("flux")
    named = await _catalogue(ModelEntry(model="safelight/stub"), ModelEntry(model=nowhere, name="broken"))
    with pytest.raises(ModelNotFound):
        named.find("flux")
    assert named.find("broken").error is not None


async def test_a_request_is_resolved_to_the_name_that_its_model_has_now(checkpoint_dir: Path) -> None:
    catalogue = await _catalogue(
        ModelEntry(model="safelight/stub", name="quick"), ModelEntry(model=str(checkpoint_dir), name="slow")
    )
    names = {"": "quick", "safelight/stub": "quick", "test/tiny": "slow", "slow": "slow"}
    assert {name: catalogue.resolved(asked(model=name)).model for name in names} == names
    with pytest.raises(ModelNotFound, match="'gone' is not served here any more"):
        catalogue.resolved(asked(model="gone"))
