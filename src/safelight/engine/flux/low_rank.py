"""What LoRA adapters add to a layer at run time: a product of two thin matrices beside the layer's own."""

from __future__ import annotations

import torch


class LowRank:
    """``up @ down`` of all adapters together: ``down`` is (rank, in), ``up`` (out, rank) with every scale in it."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor) -> None:
        self.down = down
        self.up = up

    def added(self, made: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``made``, the layer's output for ``rows``, with the product added in place."""
        return made.addmm_(rows @ self.down.t(), self.up.t())

    def added_to_both(self, made: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """As ``added``, for an input that lies in two matrices side by side."""
        split = first.shape[1]
        inner = (first @ self.down[:, :split].t()).addmm_(second, self.down[:, split:].t())
        return made.addmm_(inner, self.up.t())
