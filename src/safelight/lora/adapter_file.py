"""An adapter's file as far as its header tells: which layers, of which rank, and whether they are a model's.

Everything that can be known without the values of its tensors is checked here, in both processes alike.
"""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safelight.errors import CheckpointInvalid, LoraInvalid
from safelight.lora.keys import Key, Part, other_method, parse_key
from safelight.lora.layers import Layers, Target, targets_by_name
from safelight.lora.peft_settings import PeftSettings, read_settings
from safelight.safetensors_header import read_header
from safelight.tensor_header import TensorEntry, TensorHeader

MAX_RANK = 512
MAX_FILE_BYTES = 2 * 1024**3

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Identity(NamedTuple):
    """Of a file's content, as far as the file system tells: another one was written if any of these differs."""

    device: int
    inode: int
    modified_ns: int
    size_bytes: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True, slots=True)
class FileLayer:
    """A layer as the file calls it. ``down`` (rank, in) and ``up`` (out, rank) are names of tensors."""

    name: str
    down: str
    up: str
    alpha: str | None
    rank: int
    in_features: int
    out_features: int


class Piece(NamedTuple):
    """A layer of the model, and where in the output of ``source`` its own begins."""

    layer: str
    source: FileLayer
    first_row: int
    rows: int
    is_swapped: bool


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """``tensors`` by name, which begin ``data_start`` bytes into the file; ``text_encoder_layers`` are not among
    ``layers``: they have no effect here.
    """

    name: str
    path: Path
    identity: Identity
    layers: tuple[FileLayer, ...]
    text_encoder_layers: int
    settings: PeftSettings
    tensors: Mapping[str, TensorEntry]
    data_start: int

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(layer.rank for layer in self.layers)

    @property
    def size_bytes(self) -> int:
        return self.identity.size_bytes

    def pieces(self, model_layers: Layers) -> list[Piece]:
        """What it changes of a model. Raises ``LoraInvalid`` unless all of it is the model's."""
        targets = targets_by_name(model_layers)
        pieces: list[Piece] = []
        misfits: list[str] = []
        for layer in self.layers:
            found = targets.get(layer.name)
            misfit = _misfit(layer, found, model_layers)
            if misfit is None and found is not None:
                pieces += _pieces(layer, found, model_layers)
            else:
                misfits.append(f"{layer.name} {misfit}")
        if misfits:
            fitting, total = len(self.layers) - len(misfits), len(self.layers)
            raise _invalid(
                self.name, f"is for another model: {fitting} of its {total} layers fit this one; {misfits[0]}"
            )
        changed, count = Counter(piece.layer for piece in pieces).most_common(1)[0]
        if count > 1:
            raise _invalid(self.name, f"changes {changed} twice, under two names")
        return pieces


def _misfit(layer: FileLayer, targets: tuple[Target, ...] | None, model_layers: Layers) -> str | None:
    if targets is None:
        return "is not in this model"
    sizes = [model_layers[target.layer] for target in targets]
    wanted = sizes[0].in_features, sum(size.out_features for size in sizes)
    if (layer.in_features, layer.out_features) == wanted:
        return None
    return f"is {layer.in_features} x {layer.out_features}, this model's is {wanted[0]} x {wanted[1]}"


def _pieces(layer: FileLayer, targets: tuple[Target, ...], model_layers: Layers) -> Iterator[Piece]:
    first_row = 0
    for target in targets:
        rows = model_layers[target.layer].out_features
        yield Piece(target.layer, layer, first_row, rows, target.is_swapped)
        first_row += rows


def read_adapter(name: str, path: Path) -> AdapterFile:
    """Reads the header. Raises ``LoraInvalid`` with a sentence that names the adapter and what is wrong with it."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _invalid(name, "is not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise _invalid(name, f"has {status.st_size} bytes: {MAX_FILE_BYTES} at most are read")
        header = read_header(path)
    except OSError as error:
        raise _invalid(name, f"cannot be read: {error.strerror}") from None
    except CheckpointInvalid as error:
        raise LoraInvalid(error.message.replace(str(path), _called(name)), param="loras") from None
    keys = _keys(name, header)
    layers = _layers(name, header, {key: tensor for tensor, key in keys.items() if not key.is_text_encoder})
    text_encoder_layers = {key.layer for key in keys.values() if key.is_text_encoder}
    if not layers:
        what = "changes the text encoders only, which is not served" if text_encoder_layers else "has no layers"
        raise _invalid(name, what)
    settings = read_settings(_called(name), header.metadata)
    return AdapterFile(
        name,
        path,
        Identity.of(status),
        tuple(layers),
        len(text_encoder_layers),
        settings,
        header.entries,
        header.data_start,
    )


def _invalid(name: str, what: str) -> LoraInvalid:
    return LoraInvalid(f"{_called(name)} {what}", param="loras")


def _called(name: str) -> str:
    return f"the LoRA adapter {name!r}"


def _keys(name: str, header: TensorHeader) -> dict[str, Key]:
    """What each tensor of the file is."""
    for tensor in header.entries:
        if method := other_method(tensor):
            raise _invalid(name, f"is for {method} ({tensor}): only LoRA is served")
    keys: dict[str, Key] = {}
    for tensor in header.entries:
        key = parse_key(tensor)
        if key is None:
            raise _invalid(name, f"has the tensor {tensor}, which no LoRA adapter for FLUX has")
        keys[tensor] = key
    if len(set(keys.values())) < len(keys):
        raise _invalid(name, "has a layer twice, under two names")
    return keys


def _layers(name: str, header: TensorHeader, tensors: Mapping[Key, str]) -> list[FileLayer]:
    layers = []
    for layer in dict.fromkeys(key.layer for key in tensors):
        down, up, alpha = (tensors.get(Key(layer, part)) for part in (Part.DOWN, Part.UP, Part.ALPHA))
        if down is None or up is None:
            raise _invalid(name, f"has only a part of {layer}: an up and a down matrix make a layer")
        (rank, in_features), (out_features, up_rank) = (_matrix(name, header, tensor) for tensor in (down, up))
        if rank != up_rank:
            raise _invalid(name, f"has matrices of rank {rank} and {up_rank} for {layer}")
        if not 1 <= rank <= MAX_RANK:
            raise _invalid(name, f"is of rank {rank} in {layer}: 1 to {MAX_RANK} are served")
        if alpha is not None and math.prod(_shape(name, header, alpha)) != 1:
            raise _invalid(name, f"has an alpha that is not a number: {alpha}")
        layers.append(FileLayer(layer, down, up, alpha, rank, in_features, out_features))
    return layers


def _matrix(name: str, header: TensorHeader, tensor: str) -> tuple[int, int]:
    match _shape(name, header, tensor):
        case (rows, columns):
            return rows, columns
        case shape:
            raise _invalid(name, f"has {tensor} of shape {list(shape)}: a matrix is needed")


def _shape(name: str, header: TensorHeader, tensor: str) -> tuple[int, ...]:
    """Checked against the bytes that the file has for it."""
    entry = header.entries[tensor]
    begin, end = entry.data_offsets
    if entry.dtype not in DTYPE_BYTES:
        raise _invalid(name, f"has {tensor} as {entry.dtype}: {', '.join(DTYPE_BYTES)} are read")
    if min(entry.shape, default=0) < 0 or math.prod(entry.shape) * DTYPE_BYTES[entry.dtype] != end - begin:
        raise _invalid(name, f"has {end - begin} bytes for {tensor}, which is not what its shape needs")
    return entry.shape
