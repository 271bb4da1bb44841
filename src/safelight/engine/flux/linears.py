"""The matrix products of the blocks, in the weights' own format or in eight bits.

``Linear`` and ``Float8Linear`` are interchangeable for the forward; what they take is made by the operations that go
with them: tensors for the one, ``Scaled`` rows for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.flux.low_rank import LowRank

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """Rows in float8 (e4m3), each with a scale in float32 of shape (rows, 1): ``values * scales`` is what they mean."""

    values: torch.Tensor
    scales: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __getitem__(self, rows: slice | torch.Tensor) -> Scaled:
        # As plain bytes: few operations know float8.
        return Scaled(self.values.view(torch.uint8)[rows].view(FLOAT8), self.scales[rows])

    def widened(self, dtype: torch.dtype) -> torch.Tensor:
        """What they mean, as a plain matrix."""
        return (self.values.to(dtype) * self.scales).to(dtype)


Rows = torch.Tensor | Scaled


class Layer(Protocol):
    """A matrix product and its bias. ``rows`` are of the kind that the operations make which made the layer."""

    def output(self, rows: int) -> torch.Tensor:
        """An empty matrix for so many rows of output."""

    def __call__(self, rows: Any, out: torch.Tensor | None = None) -> torch.Tensor: ...


class Adaptable:
    """A layer that LoRA adapters can act on: made of ``sources``, whose outputs lie one after the other.

    ``low_rank`` is the adapters' product while there is one; the weights stay as they are.
    """

    weight: torch.Tensor

    def __init__(self, *layers: nn.Linear) -> None:
        self.sources = layers
        self.low_rank: LowRank | None = None

    def place(self, weight: torch.Tensor) -> None:
        """From now on its weight is this tensor, of the same shape and format; what it was made of holds none."""
        self.weight = weight
        for source in self.sources:
            source.weight.data = source.weight.data.new_empty(0)

    def adapted(self, made: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``made`` from ``rows``, with what the adapters add to it, in place."""
        return made if self.low_rank is None else self.low_rank.added(made, rows)


class Linear(Adaptable):
    """Takes over the weights of one or several ``nn.Linear`` that read the same input, as one product."""

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__(*layers)
        self.weight, self.bias = fused(layers)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def output(self, rows: int) -> torch.Tensor:
        """As ``Layer.output``."""
        return self.weight.new_empty(rows, self.out_features)

    def __call__(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return self.adapted(torch.addmm(self.bias, rows, self.weight.t(), out=out), rows)

    def gelu(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """On CUDA only: GELU in its tanh form in the product's epilogue, which saves a pass over the widest tensor.

        What adapters add must come before it, so with them it is a pass of its own.
        """
        if self.low_rank is not None:
            return F.gelu(self(rows, out), approximate="tanh")
        return torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True, out=out)


class SplitLinear(Adaptable):
    """A linear layer over two inputs side by side, without ever putting them side by side."""

    def __init__(self, layer: nn.Linear, first_features: int) -> None:
        super().__init__(layer)
        self.weight = layer.weight.detach()
        self._widths = first_features, layer.in_features - first_features
        self._bias = layer.bias

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        own_first, own_second = self.weight.t().split(self._widths)
        made = torch.addmm(self._bias, first, own_first).addmm_(second, own_second)
        return made if self.low_rank is None else self.low_rank.added_to_both(made, first, second)


class Float8Linear(Adaptable):
    """As ``Linear``, with the weight in float8, one scale for each of its rows; frees the wider weight.

    Rowwise dynamic scaling as in torchao's Float8DynamicActivationFloat8WeightConfig(PerRow()). What adapters add is
    computed in the wider format, from the same rounded rows.
    """

    def __init__(self, *layers: nn.Linear) -> None:
        super().__init__(*layers)
        weight, self._bias = fused(layers)
        rows = scaled(weight)
        self.weight, self._scales = rows.values, rows.scales.t()
        for layer in layers:
            layer.weight.data = layer.weight.data.new_empty(0)

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def output(self, rows: int) -> torch.Tensor:
        """As ``Layer.output``."""
        return self._bias.new_empty(rows, self.out_features)

    def __call__(self, rows: Scaled, out: torch.Tensor | None = None) -> torch.Tensor:
        made = torch._scaled_mm(
            rows.values,
            self.weight.t(),
            scale_a=rows.scales,
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=self._bias.dtype,
            use_fast_accum=True,
            out=out,
        )
        return made if self.low_rank is None else self.low_rank.added(made, rows.widened(made.dtype))


def fused(layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and biases as one; the layers then are views of it, so nothing is held twice."""
    if len(layers) == 1:
        return layers[0].weight.detach(), layers[0].bias.detach()
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers])
    place = 0
    for layer in layers:
        end = place + layer.out_features
        layer.weight.data, layer.bias.data = weight[place:end], bias[place:end]
        place = end
    return weight, bias


def scaled(matrix: torch.Tensor) -> Scaled:
    """Rounded to float8, row by row: the largest value of each becomes 448."""
    scales = matrix.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FLOAT8_MAX
    return Scaled((matrix.float() / scales).to(FLOAT8), scales)
