"""Every tensor of a component, and where it lies."""

from __future__ import annotations

from safelight.checkpoint.component import Component
from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.checkpoint.transformer_file import read_transformer_file
from safelight.safetensors_header import read_header

_NOT_LOADED = ("I16", "I8", "U8", "BOOL")


def stored_tensors(component: Component) -> dict[str, StoredTensor]:
    """By the names that the libraries have for them, in the order of their bytes. Raises ``CheckpointInvalid``.

    Those of a directory in other number formats, or whose header contradicts itself, are left out: what needs them will
    not match.
    """
    if component.is_single_file:
        found = read_transformer_file(component.files[0]).tensors
        return dict(sorted(found.items(), key=lambda item: min(item[1].offsets)))
    tensors = {}
    for path in component.files:
        header = read_header(path)
        for name, entry in sorted(header.entries.items(), key=lambda item: item[1].data_offsets):
            tensor = StoredTensor.of(path, name, entry, header.data_start)
            if tensor is not None and tensor.dtype not in _NOT_LOADED:
                tensors[name] = tensor
    return tensors
