"""A model of a single file: its transformer, and all else from a base model in diffusers layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safelight.checkpoint.component import Checkpoint, Component
from safelight.checkpoint.directory import COMPONENTS, read_component, read_index, read_json
from safelight.checkpoint.flux_config import family_of, transformer_config
from safelight.checkpoint.transformer_file import TransformerFile
from safelight.errors import CheckpointInvalid
from safelight.hub.manifest import has_manifest, read_manifest
from safelight.model_card import Family, ModelCard

BASE_COMPONENTS = tuple(name for name in COMPONENTS if name != "transformer")
"""What a single file takes from a base model."""

_TITLES = ("general.name", "modelspec.title", "modelspec.architecture")
_SCHEDULERS: Mapping[bool, Mapping[str, Any]] = {
    True: {"shift": 3.0, "use_dynamic_shifting": True},
    False: {"shift": 1.0, "use_dynamic_shifting": False},
}
"""What differs between the noise schedulers of dev and its kin (with guidance) and of schnell."""


def with_base(file: TransformerFile, model: str, base: Path) -> Checkpoint:
    """The whole model. Raises ``CheckpointInvalid`` if the two do not fit together, naming both."""
    base = base.resolve()
    components = read_base(base)
    base_config = _read_config(base, "transformer")
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    try:
        config = transformer_config(shapes, base_config)
        family = family_of(config, [file.path.stem, *(file.metadata.get(title, "") for title in _TITLES)])
        _check_base(config, base)
    except ValueError as error:
        raise CheckpointInvalid(f"{file.path} cannot be served with {base}: {error}") from None
    components["transformer"] = _transformer(file, base, config)
    components["scheduler"] = _scheduler(components["scheduler"], base_config, config)
    path, parts = file.path.absolute(), tuple(components[name] for name in COMPONENTS)
    # Of a pulled file it is the snapshot, in which it may lie deeper.
    top = next((folder for folder in path.parents if has_manifest(folder)), path.parent)
    name = path.relative_to(top).as_posix()
    manifest = read_manifest(top)
    card = _card(file, family, f"{manifest.repository}/{name}" if manifest else model)
    return Checkpoint(path, parts, card, _used_files(top, name, base))


def _used_files(top: Path, name: str, base: Path) -> dict[Path, Callable[[str], bool]]:
    """Of the folder that the file lies in, and of the base."""
    if top == base:
        return {base: lambda used: used == name or _is_of_a_base(used)}
    return {top: lambda used: used == name, base: _is_of_a_base}


def _is_of_a_base(name: str) -> bool:
    return not name.startswith("transformer/")


def read_base(base: Path) -> dict[str, Component]:
    """All of a directory but its transformer. Raises ``CheckpointInvalid``."""
    index = read_index(base / "model_index.json")
    return {name: read_component(base, name, index.get(name)) for name in BASE_COMPONENTS}


def _read_config(base: Path, name: str) -> dict[str, Any]:
    """Nothing where the folder is not there: of the transformer a base model needs none."""
    path = base / name / "config.json"
    return read_json(path, dict[str, Any]) if path.exists() else {}


def _check_base(config: Mapping[str, Any], base: Path) -> None:
    """Raises ``ValueError`` if what the base model's parts give is not what the transformer takes."""
    for what, name, member, factor, needed in (
        ("T5 text encoder", "text_encoder_2", "d_model", 1, config["joint_attention_dim"]),
        ("CLIP text encoder", "text_encoder", "hidden_size", 1, config["pooled_projection_dim"]),
        ("VAE", "vae", "latent_channels", 4, config["out_channels"]),
    ):
        found = _read_config(base, name).get(member)
        if isinstance(found, int) and found * factor != needed:
            raise ValueError(f"its {what} gives {found * factor} channels, and the transformer takes {needed}")


def _transformer(file: TransformerFile, base: Path, config: Mapping[str, Any]) -> Component:
    tensors = file.tensors.values()
    bytes_by_dtype: Counter[str] = Counter()
    for tensor in tensors:
        bytes_by_dtype[tensor.dtype] += tensor.size_bytes
    return Component(
        "transformer",
        "diffusers",
        "FluxTransformer2DModel",
        bytes_by_dtype.total(),
        bytes_by_dtype.most_common(1)[0][0],
        base / "transformer",
        (file.path.absolute(),),
        sum(tensor.count for tensor in tensors),
        config,
        is_single_file=True,
    )


def _scheduler(component: Component, base_transformer: Mapping[str, Any], transformer: Mapping[str, Any]) -> Component:
    """That of the base model, with other settings if it is for another kind of transformer."""
    config = read_json(component.folder / "scheduler_config.json", dict[str, Any])
    guidance = transformer["guidance_embeds"]
    base_guidance = base_transformer.get("guidance_embeds", config.get("use_dynamic_shifting", False))
    if base_guidance == guidance:
        return component
    return replace(component, config={**config, **_SCHEDULERS[guidance]})


def _card(file: TransformerFile, family: Family, model: str) -> ModelCard:
    own = file.path.with_suffix(".safelight.json")
    return read_json(own, ModelCard) if own.exists() else ModelCard.of_family(family, model)
