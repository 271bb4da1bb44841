"""Several models in the settings file: names, settings of their own, and a sentence for each thing that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.config import Config, load_config
from safelight.errors import ConfigError

TWO = """
dtype = "float32"
idle_unload_s = 600

[[models]]
name = "dev"
model = "/models/flux-dev"
precision = "bf16"
dtype = "bfloat16"
pinned = true
idle_unload_s = 0

[[models]]
model = "owner/flux-schnell@main"
warmup_sizes = ["512x512", "768x512"]
"""


def _load(folder: Path, text: str, **flags: str) -> Config:
    file = folder / "safelight.toml"
    file.write_text(text)
    return load_config(flags, {}, file)


def test_without_a_list_there_is_the_one_model_that_model_names() -> None:
    (entry,) = load_config({"model": "/m"}, {}).entries
    assert (entry.key, entry.name, entry.model, entry.is_pinned, dict(entry.own)) == ("/m", "", "/m", False, {})


def test_each_table_is_a_model_with_what_differs_for_it(tmp_path: Path) -> None:
    config = _load(tmp_path, TWO)
    dev, schnell = config.entries
    assert (dev.key, dev.model, dev.is_pinned) == ("dev", "/models/flux-dev", True)
    assert (schnell.key, schnell.model, schnell.is_pinned) == (*["owner/flux-schnell@main"] * 2, False)
    its = config.of(dev)
    assert (its.model, its.precision, its.dtype, its.idle_unload_s) == ("/models/flux-dev", "bf16", "bfloat16", 0.0)
    its = config.of(schnell)
    assert (its.precision, its.dtype, its.idle_unload_s) == ("auto", "float32", 600.0)
    assert its.warmup_sizes == ((512, 512), (768, 512))


def test_the_first_is_the_default_unless_model_names_another(tmp_path: Path) -> None:
    assert _load(tmp_path, TWO).model == "/models/flux-dev"
    config = _load(tmp_path, TWO, model="owner/flux-schnell@main")
    assert config.model == "owner/flux-schnell@main"
    assert [entry.key for entry in config.entries] == ["owner/flux-schnell@main", "dev"]


def test_a_model_that_is_not_in_the_list_cannot_be_the_default(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model='other' is none of the models of the list: dev, owner/") as caught:
        _load(tmp_path, TWO, model="other")
    assert caught.value.param == "model"


def test_an_empty_list_is_none(tmp_path: Path) -> None:
    assert _load(tmp_path, "models = []") == Config()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models = 'a'", r"models is 'a': models are tables that begin with \[\[models\]\]"),
        ("models = ['a']", r"models is \['a'\]: models are tables"),
        ("[models]\nmodel = 'a'", r"models is \{'model': 'a'\}: models are tables"),
        ("[[models]]\nname = 'a'", r"models\[1\] has no model"),
        ("[[models]]\nmodel = ' '", r"models\[1\].model=' ' is empty"),
        ("[[models]]\nmodel = 'a'\nport = 1", r"models\[1\].port is not a setting of a model: name, model, pinned, "),
        ("[[models]]\nmodel = 'a'\ndtype = 'int8'", r"models\[1\].dtype='int8' is not one of"),
        (
            "[[models]]\nmodel = 'a'\n[[models]]\nmodel = 'b'\nbatch_limit = 65",
            r"models\[2\].batch_limit='65' is not a",
        ),
        ("[[models]]\nmodel = 'a'\npinned = 'yes'", r"models\[1\].pinned='yes' is not one of true, false"),
        ("[[models]]\nmodel = 'a'\nidle_unload_s = -1", r"models\[1\].idle_unload_s='-1' is not a number of seconds"),
        ("[[models]]\nmodel = 'a'\nname = ''", r"models\[1\].name='' is not a name"),
        ("[[models]]\nmodel = 'a'\nname = 'a b'", r"models\[1\].name='a b' is not a name"),
        ("[[models]]\nmodel = 'a'\nname = '../x'", r"models\[1\].name='../x' is not a name"),
        ("[[models]]\nmodel = 'a'\nname = 'x/load'", r"models\[1\].name='x/load' ends as routes do"),
        ("[[models]]\nmodel = 'a'\n[[models]]\nmodel = 'a'", r"models\[2\] has the name 'a', as one before it"),
        (
            "dtype = 'float32'\n[[models]]\nmodel = 'a'\nprecision = 'fp8'",
            "precision of 'a'='fp8' goes with dtype bfloat16, not 'float32'",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_its_value(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _load(tmp_path, text)


def test_the_list_has_no_environment_variable() -> None:
    with pytest.raises(ConfigError, match="SAFELIGHT_MODELS is not a setting"):
        load_config({}, {"SAFELIGHT_MODELS": "a,b"})
