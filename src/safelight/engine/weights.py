"""Modules without weights, made from their config, and the plan that fills them straight from the safetensors files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.engine.encodings import Encoding, encoding_of
from safelight.engine.transfer import CHUNK_BYTES, Chunk
from safelight.errors import CheckpointInvalid

if TYPE_CHECKING:
    import torch

_OLD_PREFIX = "text_model."
_ALLOCATION_BYTES = 512


def reserve(device: torch.device, dtype: torch.dtype, stored: Iterable[dict[str, StoredTensor]]) -> None:
    """Lets torch's allocator ask CUDA for all memory at once: asking for each tensor costs more than filling it."""
    import torch

    if device.type != "cuda":
        return
    counts = (tensor.count for tensors in stored for tensor in tensors.values())
    size_bytes = sum(math.ceil(count * dtype.itemsize / _ALLOCATION_BYTES) * _ALLOCATION_BYTES for count in counts)
    with contextlib.suppress(torch.OutOfMemoryError):  # then it is asked for piece by piece
        torch.empty(size_bytes, dtype=torch.uint8, device=device)


def free_what_decoding_took(device: torch.device) -> None:
    """Each stream has memory of its own, which no other uses again."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_empty(made_by: Any, folder: Path, config: Mapping[str, Any] | None = None) -> torch.nn.Module:
    """The module as its class makes it from its config: parameters without memory, buffers with their values.

    ``config`` is given where it is not what ``config.json`` in ``folder`` says.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    module: torch.nn.Module
    with no_init_weights(), init_empty_weights(include_buffers=False):
        if issubclass(made_by, PreTrainedModel):
            module = made_by(made_by.config_class.from_pretrained(folder, local_files_only=True))
        else:
            module = made_by.from_config(config or made_by.load_config(folder, local_files_only=True))
    if isinstance(module, PreTrainedModel):
        module.tie_weights()  # a parameter without memory was made anew for each of its names
    return module.eval().requires_grad_(False)


def match(module: torch.nn.Module, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor] | None:
    """``stored`` by the names of ``module``; ``None`` unless each of the module's tensors is there exactly once."""
    expected = module.state_dict(keep_vars=True)
    renamed = {_name_in(expected, name): tensor for name, tensor in stored.items()}
    filled = {id(expected[name]) for name in renamed if name in expected}
    is_exact = (
        len(filled) == len(renamed) == len(stored)
        and filled == {id(tensor) for tensor in expected.values()}
        and all(expected[name].shape == tensor.shape for name, tensor in renamed.items())
    )
    return renamed if is_exact else None


def difference(module: torch.nn.Module, stored: dict[str, StoredTensor]) -> str:
    """The first thing, in words, for which the two do not ``match``."""
    expected = module.state_dict(keep_vars=True)
    for name, tensor in stored.items():
        if name not in expected:
            return f"it has {tensor.name}, which is too much"
        if (shape := tuple(expected[name].shape)) != tensor.shape:
            return f"{tensor.name} gives {name} the shape {list(tensor.shape)}, not {list(shape)}"
    return f"it lacks {next((name for name in expected if name not in stored), 'nothing')}"


def _name_in(expected: dict[str, Any], name: str) -> str:
    """CLIP's files still say where their tensors lay before transformers 5."""
    return name if name in expected else name.removeprefix(_OLD_PREFIX)


def allocate(
    module: torch.nn.Module, stored: dict[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Gives a module that matches ``stored`` its memory on ``device``: floating point as ``dtype``, the rest as it is.

    The parameters and buffers that come back, by name, have no values yet.
    """
    import torch

    expected = module.state_dict(keep_vars=True)
    made: dict[int, torch.Tensor] = {}
    for name, tensor in stored.items():
        stored_as = encoding_of(tensor).dtype
        kind = dtype if stored_as.is_floating_point else stored_as
        place = torch.empty(tensor.shape, dtype=kind, device=device)
        is_parameter = isinstance(expected[name], torch.nn.Parameter)
        made[id(expected[name])] = torch.nn.Parameter(place, requires_grad=False) if is_parameter else place
    # One object under all of its names: so tied weights stay tied.
    places = {name: made[id(tensor)] for name, tensor in expected.items()}
    module.load_state_dict(places, assign=True)
    for name, buffer in module.named_buffers():
        if name not in places:
            buffer.data = buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else None)
    if device.type == "cuda":
        # The allocator may hand out what work of this stream still uses; the streams that fill it do not wait for it.
        torch.cuda.current_stream(device).synchronize()
    return {name: places[name] for name in stored}


def check_values(module: torch.nn.Module, source: Path, stored: dict[str, StoredTensor]) -> None:
    """Raises ``CheckpointInvalid`` for weights that nothing filled, or that are no numbers: they would draw noise.

    It names the file where ``stored`` has the tensor, else ``source``.
    """
    import torch

    filled = {name: tensor for name, tensor in module.state_dict().items() if tensor.numel()}
    if empty := [name for name, tensor in filled.items() if tensor.is_meta]:
        raise CheckpointInvalid(f"{source} has no values for {len(empty)} weights, the first is {empty[0]}")
    floating = {name: tensor for name, tensor in filled.items() if tensor.is_floating_point()}
    # NaN and infinity show in the least and the largest; asked for all at once, since each answer waits for the device.
    extremes = [torch.stack(torch.aminmax(tensor)).float() for tensor in floating.values()]
    is_finite = torch.stack(extremes).isfinite().all(dim=1).tolist() if extremes else []
    if wrong := [name for name, is_right in zip(floating, is_finite, strict=True) if not is_right]:
        place, name = (stored[wrong[0]].path, stored[wrong[0]].name) if wrong[0] in stored else (source, wrong[0])
        raise CheckpointInvalid(f"{place} has NaN or infinity in {len(wrong)} weights, the first is {name}")


def chunks(component: str, stored: dict[str, StoredTensor], places: dict[str, torch.Tensor]) -> Iterator[Chunk]:
    """Stretches of ``CHUNK_BYTES`` at most that together fill all ``places``."""
    chunk: Chunk | None = None
    for part in _parts(component, stored, places):
        if chunk is None:
            chunk = part
        elif _follows(chunk, part):
            chunk.targets.extend(part.targets)
        else:
            yield chunk
            chunk = part
    if chunk is not None:
        yield chunk


def _parts(component: str, stored: dict[str, StoredTensor], places: dict[str, torch.Tensor]) -> Iterator[Chunk]:
    """Each piece of a tensor by itself, the large ones cut."""
    import torch

    for name, tensor in stored.items():
        encoding = encoding_of(tensor)
        pieces = torch.chunk(places[name].data.view(-1), len(tensor.offsets))
        for begin, piece in zip(tensor.offsets, pieces, strict=True):
            offset = begin
            for target in torch.split(piece, _values_at_once(encoding)):
                chunk = Chunk(component, tensor.path, offset, encoding, [target])
                offset += chunk.file_bytes
                yield chunk


def _values_at_once(encoding: Encoding) -> int:
    """So few that neither their bytes nor what they are decoded to is more than a buffer."""
    blocks = CHUNK_BYTES // max(encoding.block_bytes, encoding.block_values * encoding.dtype.itemsize)
    return blocks * encoding.block_values


def _follows(chunk: Chunk, part: Chunk) -> bool:
    is_next = (part.path, part.offset) == (chunk.path, chunk.offset + chunk.file_bytes)
    return is_next and part.encoding == chunk.encoding and chunk.file_bytes + part.file_bytes <= CHUNK_BYTES
