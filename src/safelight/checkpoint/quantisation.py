"""Numbers that a file keeps beside its weights because they are quantised: which are understood, and which are not.

Understood are weights in 8-bit floating point with one scale a tensor, as ComfyUI has written them: first as
``scaled_fp8`` with ``scale_weight``, then with ``weight_scale`` and a ``comfy_quant`` that names the format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.errors import CheckpointInvalid

_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_WEIGHT_SCALES = (".scale_weight", ".weight_scale")
_UNUSED = (".scale_input", ".input_scale")  # for products in 8 bits, whose inputs were measured in advance
_FORMAT_TENSOR = ".comfy_quant"
_FORMAT_METADATA = "_quantization_metadata"
_MAX_FORMAT_BYTES = 4096
_OTHERS = (
    (r"bitsandbytes__nf4", "NF4 of bitsandbytes"),
    (r"bitsandbytes__fp4|\.absmax$|\.quant_map$|\.SCB$", "bitsandbytes"),
    (r"\.(smooth|smooth_factor|wscales|proj_down|wcscales)(_orig)?$", "SVDQuant of Nunchaku"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.weight_scale_2$", "NVFP4"),
    (r"\.weight\._(data|scale|shift)$", "Quanto"),
    (r":_weight_|\.tensor_impl", "torchao"),
)


def unscaled(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """The tensors that are weights, and the offset of the scale of each weight that has one.

    Raises ``CheckpointInvalid``, naming the scheme, for those that are not understood.
    """
    _refuse_others(path, tensors, metadata)
    weights: dict[str, StoredTensor] = {}
    scales: dict[str, int] = {}
    for name, tensor in tensors.items():
        if name.endswith(_WEIGHT_SCALES):
            layer = name.rpartition(".")[0]
            scales[f"{layer}.weight"] = _scale(path, tensor, tensors.get(f"{layer}.weight"))
        elif name.endswith(_FORMAT_TENSOR):
            _check_format(path, _read_format(tensor))
        elif name != "scaled_fp8" and not name.endswith(_UNUSED):
            weights[name] = tensor
    return weights, scales


def _refuse_others(path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
    all_names = "\n".join(names)
    for pattern, words in _OTHERS:
        if found := re.search(pattern, all_names, re.MULTILINE):
            raise _unknown(path, f"{words} ({found[0]})")
    if _FORMAT_METADATA in metadata:
        try:
            layers = msgspec.json.decode(metadata[_FORMAT_METADATA], type=_Quantisation).layers
        except (msgspec.MsgspecError, RecursionError):
            raise CheckpointInvalid(f"{path} has {_FORMAT_METADATA} that cannot be read") from None
        for layer in layers.values():
            _check_format(path, layer)


def _scale(path: Path, scale: StoredTensor, weight: StoredTensor | None) -> int:
    if weight is None:
        raise CheckpointInvalid(f"{path} has {scale.name}, but no weight for it")
    if scale.dtype != "F32" or scale.count != 1 or weight.dtype not in _FLOAT8:
        raise _unknown(path, f"{weight.dtype} with scales in {scale.dtype} of the shape {list(scale.shape)}")
    return scale.offsets[0]


def _read_format(tensor: StoredTensor) -> Any:
    try:
        with tensor.path.open("rb") as file:
            file.seek(tensor.offsets[0])
            return msgspec.json.decode(file.read(min(tensor.size_bytes, _MAX_FORMAT_BYTES)))
    except OSError as error:
        raise CheckpointInvalid(f"{tensor.path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CheckpointInvalid(f"{tensor.path} has {tensor.name} that cannot be read") from None


def _check_format(path: Path, layer: Any) -> None:
    name = layer.get("format") if isinstance(layer, dict) else layer
    if name not in _FORMATS:
        raise _unknown(path, str(name)[:40])
    if isinstance(layer, dict) and layer.get("convrot"):
        raise _unknown(path, f"{name} with convrot")


def _unknown(path: Path, scheme: str) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{path} is quantised in a way that is not read here, {scheme}: take a file in bf16, fp8 or GGUF"
    )


class _Quantisation(msgspec.Struct):
    layers: dict[str, Any] = {}
