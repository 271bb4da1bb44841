"""A FLUX checkpoint directory in diffusers layout, read from its JSON files and safetensors headers alone.

Both processes use it: the front for defaults, limits and a quick refusal of what cannot load, the worker as its plan
of components and bytes. Nothing here imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from safelight.config import EMBEDDED_MODEL, STUB_MODEL
from safelight.errors import CheckpointInvalid, CheckpointNotFound
from safelight.hub.manifest import read_manifest
from safelight.hub.model_name import parse_model_name
from safelight.hub.snapshots import find_snapshot
from safelight.model_card import Family, ModelCard
from safelight.safetensors_header import MAX_HEADER_BYTES, SafetensorsHeader, read_header

_EMBEDDED_DIR = Path(__file__).parent / "models" / "shapes"
_TOKENIZERS = frozenset(
    {
        "CLIPTokenizer",
        "CLIPTokenizerFast",
        "T5Tokenizer",
        "T5TokenizerFast",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    }
)
_CLASSES: dict[str, tuple[str, frozenset[str]]] = {
    "tokenizer": ("transformers", _TOKENIZERS),
    "tokenizer_2": ("transformers", _TOKENIZERS),
    "scheduler": ("diffusers", frozenset({"FlowMatchEulerDiscreteScheduler"})),
    "text_encoder": ("transformers", frozenset({"CLIPTextModel"})),
    "text_encoder_2": ("transformers", frozenset({"T5EncoderModel"})),
    "transformer": ("diffusers", frozenset({"FluxTransformer2DModel"})),
    "vae": ("diffusers", frozenset({"AutoencoderKL"})),
}
_WEIGHTS = {"transformers": "model.safetensors", "diffusers": "diffusion_pytorch_model.safetensors"}
_WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler")

COMPONENTS = tuple(_CLASSES)
"""Folders of a checkpoint, in the order in which they load."""

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the pipeline. ``dtype`` is the safetensors name (``F16``, ``BF16``, ``F32``) most of it has."""

    name: str
    library: str
    class_name: str
    weight_bytes: int
    dtype: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory that was found complete. ``components`` are in the order in which they load."""

    path: Path
    components: tuple[Component, ...]
    card: ModelCard

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(component.weight_bytes for component in self.components)


def open_checkpoint(model: str, models_dir: Path | None = None) -> Checkpoint:
    """Finds and checks a model given as ``safelight/shapes``, as a directory, or as it was pulled into ``models_dir``.

    The bytes of weights are not looked at. Raises ``CheckpointNotFound`` or ``CheckpointInvalid`` with a sentence that
    names the file or the remedy.
    """
    if model == STUB_MODEL:
        return _STUB
    path = _find(model, models_dir)
    index = read_index(path / "model_index.json")
    components = tuple(_read_component(path, name, index.get(name)) for name in _CLASSES)
    manifest = read_manifest(path)
    return Checkpoint(path.resolve(), components, _read_card(path, manifest.repository if manifest else model))


def _find(model: str, models_dir: Path | None) -> Path:
    # os.path, not pathlib: a name too long, an unknown ~user or a forbidden folder is "not there", not an exception.
    path = _EMBEDDED_DIR if model == EMBEDDED_MODEL else Path(os.path.expanduser(model))
    if os.path.isdir(path):
        return path
    name = parse_model_name(model)
    if name is None:
        raise CheckpointNotFound(
            f"there is no model {model!r}: give the directory of a FLUX.1 checkpoint in diffusers layout, "
            f"or {EMBEDDED_MODEL!r} for the embedded one"
        )
    snapshot = None if models_dir is None else find_snapshot(models_dir, name)
    if snapshot is None:
        raise CheckpointNotFound(
            f"there is no model {model!r}, neither as a directory nor pulled: run `safelight pull {model}`, "
            f"or take {EMBEDDED_MODEL!r}, the embedded one"
        )
    return snapshot


def read_index(path: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline that can be served. Raises ``CheckpointInvalid``."""
    index = _read_json(path, dict[str, Any])
    if index.get("_class_name") != "FluxPipeline":
        raise CheckpointInvalid(f"{path} is for {index.get('_class_name')}, not FluxPipeline")
    return index


def _read_component(path: Path, name: str, entry: object) -> Component:
    library, allowed = _CLASSES[name]
    match entry:
        case [str(found_library), str(class_name)] if found_library == library and class_name in allowed:
            pass
        case _:
            raise CheckpointInvalid(
                f"{path / 'model_index.json'} names {entry} as {name}: {library} {' or '.join(sorted(allowed))} "
                "is what FLUX.1 uses"
            )
    folder = path / name
    if name in _WITHOUT_WEIGHTS:
        if not folder.is_dir():
            raise CheckpointInvalid(f"{folder} is missing")
        return Component(name, library, class_name, 0, None)
    _read_json(folder / "config.json", dict[str, Any])
    headers = _read_weights(folder, _WEIGHTS[library])
    dtypes = [dtype for header in headers for dtype in header.tensors.values()]
    dtype = max(set(dtypes), key=dtypes.count, default=None)
    return Component(name, library, class_name, sum(header.weight_bytes for header in headers), dtype)


def _read_weights(folder: Path, file_name: str) -> list[SafetensorsHeader]:
    index_path = folder / f"{file_name}.index.json"
    if not index_path.exists():
        if not (folder / file_name).exists():
            raise CheckpointInvalid(f"{folder / file_name} is missing (only safetensors are loaded)")
        return [read_header(folder / file_name)]
    weight_map = _read_json(index_path, _ShardIndex).weight_map
    headers = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CheckpointInvalid(f"{index_path} points outside its folder: {shard!r}")
        headers[shard] = read_header(folder / shard)
    for tensor, shard in weight_map.items():
        if tensor not in headers[shard].tensors:
            raise CheckpointInvalid(f"{folder / shard} lacks the tensor {tensor} that {index_path.name} promises")
    for shard, header in headers.items():
        if unknown := [tensor for tensor in header.tensors if weight_map.get(tensor) != shard]:
            raise CheckpointInvalid(
                f"{folder / shard} has the tensor {unknown[0]} that {index_path.name} does not know"
            )
    return list(headers.values())


_STUB = Checkpoint(
    Path(),
    tuple(Component(name, library, "", 1_000_000, None) for name, (library, _) in _CLASSES.items()),
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


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def _read_card(path: Path, model: str) -> ModelCard:
    own = path / "safelight.json"
    if own.exists():
        return _read_json(own, ModelCard)
    transformer = _read_json(path / "transformer" / "config.json", dict[str, Any])
    family = Family.DEV if transformer.get("guidance_embeds") else Family.SCHNELL
    if family is Family.DEV and "krea" in Path(model).name.lower():  # no file tells it from dev
        family = Family.KREA
    return ModelCard.of_family(family, model)


def _read_json(path: Path, kind: type[Parsed]) -> Parsed:
    try:
        if (size_bytes := path.stat().st_size) > MAX_HEADER_BYTES:
            raise CheckpointInvalid(f"{path} is not what it should be: it has {size_bytes} bytes")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointInvalid(f"{path} is not what it should be: {error}") from None
