"""The forward with LoRA adapters, never merged: the weights stay as they are, and a switch is a copy.

What the adapters of a step add to each layer lies in buffers that stay where they are, so a recorded CUDA graph reads
whatever was copied there last. Buffers and graph belong to a ``_Layout``: which layers have a product, of which padded
rank. Adapters of one kind share a layout; steps without adapters run a forward that knows nothing of them.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.failures import is_out_of_memory
from safelight.engine.flux.adapters import Adapters, Change
from safelight.engine.flux.linears import Adaptable
from safelight.engine.flux.low_rank import LowRank
from safelight.engine.flux.transformer import LeanTransformer
from safelight.lora.layers import Size

Forward = Callable[..., torch.Tensor]

_LEAST_RANK = 16
_KEPT_LAYOUTS = 3


class AdaptedForward:
    """Over the layers of ``transformer``. ``make_forward`` makes a forward whose recordings are its own."""

    def __init__(self, transformer: LeanTransformer, make_forward: Callable[[], Forward]) -> None:
        model = transformer.model
        self._names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._layers = list(transformer.layers())
        used_at_steps = {source for layer in self._layers for source in layer.sources}
        self._others = [module for module in self._names if module not in used_at_steps]
        self._dtype, self._device = transformer.dtype, transformer.device
        self._make_forward = make_forward
        self._plain = make_forward()
        self._layouts: OrderedDict[tuple[int, ...], _Layout] = OrderedDict()
        self._active: _Layout | None = None

    @property
    def sizes(self) -> dict[str, Size]:
        """Of all layers that an adapter can act on, by name."""
        return {name: Size(module.in_features, module.out_features) for module, name in self._names.items()}

    def at_steps(self, adapters: Adapters | None) -> Forward:
        """The forward of a step with these adapters; to be called before another one is asked for."""
        layout = None if adapters is None else self._layout(adapters)
        if layout is not self._active:
            for index, layer in enumerate(self._layers):
                layer.low_rank = None if layout is None else layout.low_ranks[index]
            self._active = layout
        return self._plain if layout is None else layout.forward

    @contextlib.contextmanager
    def at_beginning(self, adapters: Adapters | None) -> Iterator[None]:
        """Within it, the layers that are used once for a picture have the adapters' products."""
        hooks = []
        for module in self._others if adapters is not None else ():
            assert adapters is not None
            if changes := list(adapters.changes(self._names[module])):
                hooks.append(module.register_forward_hook(_adding(changes)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layout(self, adapters: Adapters) -> _Layout:
        for ranks, filled in self._layouts.items():
            if filled.filled_for == adapters.key:
                self._layouts.move_to_end(ranks)
                return filled
        changes = [[list(adapters.changes(self._names[source])) for source in layer.sources] for layer in self._layers]
        ranks = tuple(_padded(sum(len(change.down) for own in parts for change in own)) for parts in changes)
        layout = self._layouts.get(ranks)
        if layout is None:
            if len(self._layouts) >= _KEPT_LAYOUTS:
                self._layouts.popitem(last=False)
            layout = self._layouts[ranks] = self._made(ranks)
        self._layouts.move_to_end(ranks)
        layout.fill(adapters, self._layers, changes)
        return layout

    def _made(self, ranks: tuple[int, ...]) -> _Layout:
        """A new one; if memory lacks, the others make room."""
        try:
            return self._new(ranks)
        except RuntimeError as error:
            if not self._layouts or not is_out_of_memory(error):
                raise
        self._layouts.clear()
        self.at_steps(None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._new(ranks)

    def _new(self, ranks: tuple[int, ...]) -> _Layout:
        low_ranks = [self._empty(layer, rank) for layer, rank in zip(self._layers, ranks, strict=True)]
        return _Layout(low_ranks, self._make_forward())

    def _empty(self, layer: Adaptable, rank: int) -> LowRank | None:
        if not rank:
            return None
        rows, columns = sum(source.out_features for source in layer.sources), layer.sources[0].in_features
        place: Any = {"dtype": self._dtype, "device": self._device}
        return LowRank(torch.zeros(rank, columns, **place), torch.zeros(rows, rank, **place))


class _Layout:
    """``low_ranks`` are of each layer, ``forward`` reads them. ``filled_for`` is the key of the adapters whose values
    they hold: not the adapters, which would be kept from being forgotten.
    """

    def __init__(self, low_ranks: list[LowRank | None], forward: Forward) -> None:
        self.low_ranks = low_ranks
        self.forward = forward
        self.filled_for: object = None

    def fill(self, adapters: Adapters, layers: Sequence[Adaptable], changes: list[list[list[Change]]]) -> None:
        """Copies the adapters' values to where they are read."""
        self.filled_for = None  # in case that it fails half way
        for low_rank, layer, parts in zip(self.low_ranks, layers, changes, strict=True):
            if low_rank is not None:
                _fill(low_rank, [source.out_features for source in layer.sources], parts)
        self.filled_for = adapters.key


def _fill(low_rank: LowRank, widths: list[int], parts: list[list[Change]]) -> None:
    """Each part's output has rows of its own, each of its changes a share of the rank; the rest is zero."""
    low_rank.down.zero_()
    low_rank.up.zero_()
    row = column = 0
    for width, changes in zip(widths, parts, strict=True):
        for change in changes:
            end = column + len(change.down)
            low_rank.down[column:end].copy_(change.down)
            scaled = change.up.to(low_rank.up.device).float() * change.factor
            low_rank.up[row : row + width, column:end].copy_(scaled)
            column = end
        row += width


def _adding(changes: Sequence[Change]) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    """A forward hook that adds the changes to a layer's output."""

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        for change in changes:
            inner = F.linear(inputs[0], change.down.to(output))
            output = output + F.linear(inner, (change.up.to(output.device).float() * change.factor).to(output))
        return output

    return hook


def _padded(rank: int) -> int:
    """Powers of two, so that adapters of nearly the same rank need not be told apart."""
    return 0 if rank == 0 else max(_LEAST_RANK, 1 << (rank - 1).bit_length())
