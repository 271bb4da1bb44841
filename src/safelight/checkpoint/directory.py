"""A FLUX checkpoint directory in diffusers layout, read from its JSON files and safetensors headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from safelight.checkpoint.component import Checkpoint, Component
from safelight.errors import CheckpointInvalid
from safelight.hub.manifest import read_manifest
from safelight.model_card import Family, ModelCard
from safelight.safetensors_header import read_header
from safelight.tensor_header import BLOCKS, MAX_HEADER_BYTES, TensorHeader

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

_PIPELINES = {"FluxPipeline": None, "FluxKontextPipeline": Family.KONTEXT, "FluxFillPipeline": Family.FILL}
"""Which family a ``model_index.json`` names by its class, if it does."""

COMPONENTS = tuple(_CLASSES)
"""Folders of a checkpoint, in the order in which they load."""

Parsed = TypeVar("Parsed")


def open_directory(path: Path, model: str) -> Checkpoint:
    """The whole of it. Raises ``CheckpointInvalid``, naming the file."""
    path = path.resolve()
    index = read_index(path / "model_index.json")
    components = tuple(read_component(path, name, index.get(name)) for name in COMPONENTS)
    manifest = read_manifest(path)
    card = _read_card(path, manifest.repository if manifest else model, _PIPELINES[index["_class_name"]])
    return Checkpoint(path, components, card, {path: lambda _: True})


def read_index(path: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline that can be served. Raises ``CheckpointInvalid``."""
    index = read_json(path, dict[str, Any])
    if index.get("_class_name") not in _PIPELINES:
        raise CheckpointInvalid(f"{path} is for {index.get('_class_name')}, not {' or '.join(_PIPELINES)}")
    return index


def read_component(path: Path, name: str, entry: object) -> Component:
    """One folder of a checkpoint, which ``model_index.json`` calls ``entry``. Raises ``CheckpointInvalid``."""
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
        return Component(name, library, class_name, 0, None, folder)
    read_json(folder / "config.json", dict[str, Any])
    headers = _read_weights(folder, _WEIGHTS[library])
    dtypes = [dtype for header in headers.values() for dtype in header.tensors.values()]
    dtype = max(set(dtypes), key=dtypes.count, default=None)
    weight_bytes = sum(header.weight_bytes for header in headers.values())
    value_bytes = BLOCKS[dtype].size_bytes if dtype is not None and dtype in BLOCKS else 4
    files = tuple(folder / name for name in headers)
    return Component(name, library, class_name, weight_bytes, dtype, folder, files, weight_bytes // value_bytes)


def _read_weights(folder: Path, file_name: str) -> dict[str, TensorHeader]:
    """By the names of its files."""
    index_path = folder / f"{file_name}.index.json"
    if not index_path.exists():
        if not (folder / file_name).exists():
            raise CheckpointInvalid(f"{folder / file_name} is missing (only safetensors are loaded)")
        return {file_name: read_header(folder / file_name)}
    weight_map = read_json(index_path, _ShardIndex).weight_map
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
    return headers


class _ShardIndex(msgspec.Struct):
    weight_map: dict[str, str]


def _read_card(path: Path, model: str, family: Family | None) -> ModelCard:
    transformer = read_json(path / "transformer" / "config.json", dict[str, Any])
    reads_more = transformer.get("out_channels") not in (None, transformer.get("in_channels"))
    if reads_more != (family is Family.FILL):
        raise CheckpointInvalid(f"{path / 'transformer' / 'config.json'} and model_index.json are of different models")
    own = path / "safelight.json"
    if not own.exists():
        return ModelCard.of_family(family or _family_of(transformer, model), model)
    card = read_json(own, ModelCard)
    if family is not None and card.family is not family:
        raise CheckpointInvalid(f"{own} says family {card.family}, model_index.json is of {family}")
    return card


def _family_of(transformer: dict[str, Any], model: str) -> Family:
    if not transformer.get("guidance_embeds"):
        return Family.SCHNELL
    return Family.KREA if "krea" in Path(model).name.lower() else Family.DEV  # no file tells them apart


def read_json(path: Path, kind: type[Parsed]) -> Parsed:
    """A JSON file of a checkpoint. Raises ``CheckpointInvalid``, naming it."""
    try:
        if (size_bytes := path.stat().st_size) > MAX_HEADER_BYTES:
            raise CheckpointInvalid(f"{path} is not what it should be: it has {size_bytes} bytes")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointInvalid(f"{path} is not what it should be: {error}") from None
