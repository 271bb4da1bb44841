"""Makes the parts of a pipeline, all of them under way at once, and counts the bytes that lie on the device.

The libraries' own progress bars end when the files are mapped, with nine tenths of the wait still to come. Here each
module is made without weights, and threads fill it from its files while the next one is made (``transfer``). Files
whose tensors are not exactly the module's go the slow way: their class's ``from_pretrained``, then tensor by tensor.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.checkpoint import Checkpoint, Component
from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.checkpoint.stored_tensors import stored_tensors
from safelight.engine import weights
from safelight.engine.load_report import LoadReport
from safelight.engine.transfer import Chunk, Transfer
from safelight.engine.weight_files import in_loading_order
from safelight.errors import CheckpointInvalid, SafelightError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_FILE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_components(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    report: LoadReport,
    hosted: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """All parts by name, floating point as ``dtype``; every weight on ``device``, or on the host for those ``hosted``.

    Raises ``CheckpointInvalid``, or ``JobCancelled`` from the report; no thread of it is left then.
    """
    with Transfer.to(device) as transfer:
        return _Loading(checkpoint, device, dtype, report, transfer, hosted).run()


class _Loading:
    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        report: LoadReport,
        transfer: Transfer,
        hosted: frozenset[str],
    ) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype
        self._report = report
        self._transfer = transfer
        self._hosted = hosted
        self._chunks_left: Counter[str] = Counter()
        self._matched: dict[str, dict[str, StoredTensor]] = {}

    def run(self) -> dict[str, Any]:
        stored = {component.name: stored_tensors(component) for component in self._checkpoint.components}
        weights.reserve(
            self._device, self._dtype, (tensors for name, tensors in stored.items() if name not in self._hosted)
        )
        parts: dict[str, Any] = {}
        for component in in_loading_order(self._checkpoint):
            parts[component.name] = self._load(component, stored[component.name])
            self._count(self._transfer.arrived())
        with self._report.phase("to_device"):
            self._count(self._transfer.finish())
            weights.free_what_decoding_took(self._device)
            for component in self._checkpoint.components:
                if component.weight_bytes:
                    names = self._matched.get(component.name, {})
                    weights.check_values(parts[component.name], component.source, names)
        return parts

    def _load(self, component: Component, stored: dict[str, StoredTensor]) -> object:
        """The part, whole or with its bytes under way."""
        self._report.begin(component.name, component.weight_bytes)
        with self._report.phase("weights"):
            part = self._make(component, stored)
        if not self._chunks_left[component.name]:
            if component.weight_bytes:
                with self._report.phase("to_device"):
                    self._move(part, component.name)
            self._report.end(component.name)
        return part

    def _make(self, component: Component, stored: dict[str, StoredTensor]) -> Any:
        with _naming(component):
            made_by = getattr(importlib.import_module(component.library), component.class_name)
            if not component.weight_bytes:
                return _without_weights(made_by, component)
            module = weights.make_empty(made_by, component.folder, component.config)
            matched = weights.match(module, stored)
            if matched is None and component.is_single_file:
                raise CheckpointInvalid(f"{component.source}: {weights.difference(module, stored)}")
            if matched is None:
                return _from_pretrained(made_by, component.folder, component)
        self._matched[component.name] = matched
        places = weights.allocate(module, matched, self._place(component.name), self._dtype)
        chunks = list(weights.chunks(component.name, matched, places))
        self._chunks_left[component.name] = len(chunks)
        self._transfer.send(chunks)
        return module

    def _place(self, name: str) -> torch.device:
        import torch

        return torch.device("cpu") if name in self._hosted else self._device

    def _count(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            self._report.moved(chunk.component, chunk.file_bytes)
            self._chunks_left[chunk.component] -= 1
            if not self._chunks_left[chunk.component]:
                self._report.end(chunk.component)

    def _move(self, module: torch.nn.Module, name: str) -> None:
        """Moves each tensor by itself. ``copy`` on the CPU too: reads the mapped file now, and lets go of it."""
        for tensor in [*module.parameters(), *module.buffers()]:
            source_bytes = tensor.numel() * tensor.element_size()
            wanted = self._dtype if tensor.is_floating_point() else tensor.dtype
            tensor.data = tensor.data.to(device=self._place(name), dtype=wanted, copy=True)
            self._report.moved(name, source_bytes)


@contextlib.contextmanager
def _naming(component: Component) -> Iterator[None]:
    """Whatever the libraries raise becomes ``CheckpointInvalid``, with the file or folder and the class."""
    try:
        yield
    except (SafelightError, MemoryError):
        raise
    except Exception as error:
        log.exception("loading %s failed", component.source)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointInvalid(
            f"{component.source} could not be loaded as {component.class_name}: {reason}"
        ) from error


def _without_weights(made_by: Any, component: Component) -> object:
    if component.config is not None:
        return made_by.from_config(component.config)
    return made_by.from_pretrained(component.folder, local_files_only=True)


def _from_pretrained(made_by: Any, folder: Path, component: Component) -> torch.nn.Module:
    import torch

    log.info("%s has other tensors than %s: it loads the slow way", folder, component.class_name)
    model, info = made_by.from_pretrained(
        folder,
        dtype=getattr(torch, _FILE_DTYPES.get(component.dtype or "", "float32")),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # Without this check the libraries leave a missing weight on the meta device or at a random value.
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[kind]:
            names = sorted(str(key) for key in info[kind])
            raise CheckpointInvalid(f"{folder} has {len(names)} {kind.replace('_', ' ')}, the first is {names[0]}")
    whole: torch.nn.Module = model.eval().requires_grad_(False)
    return whole
