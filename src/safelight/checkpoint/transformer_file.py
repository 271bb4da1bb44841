"""A single file with FLUX.1's transformer, safetensors or GGUF: its tensors by diffusers' names, from its header."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safelight.checkpoint.flux_config import block_count
from safelight.checkpoint.flux_names import BLACK_FOREST_LABS, DIFFUSERS, Naming
from safelight.checkpoint.other_models import known_by, known_by_its_own_words
from safelight.checkpoint.quantisation import unscaled
from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.errors import CheckpointInvalid
from safelight.gguf_header import MAGIC, read_gguf_header
from safelight.safetensors_header import read_header
from safelight.tensor_header import TensorHeader

_SUFFIXES = (".safetensors", ".sft", ".gguf")
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_PREFIX = "model.diffusion_model."
_OTHER_PARTS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
_MAX_TENSORS = 6_000
"""With a scale, an input scale and a format for each linear layer, and other parts of a pipeline."""

_MAX_BLOCKS = 200  # FLUX.1 has 57
_KINDS = ("x_embedder.", "transformer_blocks.", "single_transformer_blocks.")
_NOT_NUMBERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True, slots=True)
class TransformerFile:
    """``tensors`` are by diffusers' names; ``metadata`` is what the file says of itself in words."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def is_weight_file(path: Path) -> bool:
    """Whether it is called like a file with weights. Raises ``CheckpointInvalid`` for one that could run code."""
    if not os.path.isfile(path):  # not pathlib: a name too long is no exception
        return False
    if path.suffix.lower() in _PICKLED:
        raise CheckpointInvalid(f"{path} has pickled weights, which can run code: take a file in safetensors or GGUF")
    return path.suffix.lower() in _SUFFIXES


def read_transformer_file(path: Path) -> TransformerFile:
    """Raises ``CheckpointInvalid``, naming the file, if it is damaged, or is not FLUX.1's transformer, all of it."""
    header = _read_header(path)
    if len(header.entries) > _MAX_TENSORS:
        raise CheckpointInvalid(f"{path} has {len(header.entries)} tensors, FLUX.1 has 780: {_MAX_TENSORS} at most")
    names = _of_the_transformer(header.entries)
    naming = _naming(header, names, path)
    stored = {short: _stored(path, name, header) for name, short in names.items()}
    own, scales = unscaled(path, stored, header.metadata)
    if unknown := [tensor.name for name, tensor in own.items() if not naming.shares(name)]:
        raise CheckpointInvalid(
            f"{path} has {len(unknown)} tensors that FLUX.1's transformer has not, the first is {unknown[0]}"
        )
    _check_complete(path, naming, own)
    scaled = {name: replace(tensor, scale_offset=scales.get(name)) for name, tensor in own.items()}
    tensors = {layer: part for name, tensor in scaled.items() for layer, part in _parts(naming, name, tensor)}
    return TransformerFile(path, tensors, header.metadata)


def _read_header(path: Path) -> TensorHeader:
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    return read_gguf_header(path) if is_gguf else read_header(path)


def _of_the_transformer(names: Iterable[str]) -> dict[str, str]:
    """The names without what precedes them in a file that holds other parts of a pipeline as well."""
    names = list(names)
    if not any(name.startswith(_PREFIX) for name in names):
        return dict(zip(names, names, strict=True))
    return {name: name.removeprefix(_PREFIX) for name in names if not name.startswith(_OTHER_PARTS)}


def _naming(header: TensorHeader, names: Mapping[str, str], path: Path) -> Naming:
    other = known_by(names.values())
    for naming in (BLACK_FOREST_LABS, DIFFUSERS):
        layers = [share.layer for name in names.values() for share in naming.shares(name)]
        if other is None and all(any(layer.startswith(kind) for layer in layers) for kind in _KINDS):
            return naming
    other = known_by(header.entries) or other or known_by_its_own_words(header.metadata) or "something else"
    raise CheckpointInvalid(f"{path} is not a FLUX.1 transformer: it seems to be {other}, which cannot be served")


def _stored(path: Path, name: str, header: TensorHeader) -> StoredTensor:
    entry = header.entries[name]
    tensor = StoredTensor.of(path, name, entry, header.data_start)
    if tensor is None:
        raise CheckpointInvalid(
            f"{path} has {name} as {entry.dtype} of the shape {list(entry.shape)}, which its bytes do not hold"
        )
    return tensor


def _check_complete(path: Path, naming: Naming, own: Mapping[str, StoredTensor]) -> None:
    doubles, singles = block_count(own, naming.double_blocks), block_count(own, naming.single_blocks)
    if doubles + singles > _MAX_BLOCKS:
        raise CheckpointInvalid(f"{path} has {doubles + singles} blocks: {_MAX_BLOCKS} at most")
    guidance = any("guidance" in name for name in own)
    if missing := [name for name in naming.names(doubles, singles, guidance=guidance) if name not in own]:
        raise CheckpointInvalid(f"{path} lacks {len(missing)} tensors, the first is {missing[0]}")


def _parts(naming: Naming, name: str, tensor: StoredTensor) -> Iterable[tuple[str, StoredTensor]]:
    """What layers of diffusers take from it."""
    if tensor.dtype in _NOT_NUMBERS:
        raise CheckpointInvalid(f"{tensor.path} has {tensor.name} in {tensor.dtype}, in which no weights are")
    shares = naming.shares(name)
    parts = sum(share.parts for share in shares) * (2 if shares[0].halves_swapped else 1)
    if not tensor.shape or not tensor.count or tensor.shape[0] % parts:
        raise CheckpointInvalid(
            f"{tensor.path} has {tensor.name} of the shape {list(tensor.shape)}, which is not {parts} equal parts"
        )
    if shares[0].halves_swapped:
        yield shares[0].layer, tensor.halves_swapped()
        return
    rows, first = tensor.shape[0] // parts, 0
    for share in shares:
        yield share.layer, tensor.rows(first, rows * share.parts) if len(shares) > 1 else tensor
        first += rows * share.parts
