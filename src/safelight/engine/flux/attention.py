"""Where a token looks at all others: the one place of the forward at which it matters where those are."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from safelight.engine.flux.operations import Pending

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Pending]
"""Begins with queries, keys and values of (rows, heads, tokens, head size); gives ``attended`` of all tokens."""


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(rows, tokens of ``query``, width). Keys may be more than queries, and in any order."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def attend_alone(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Pending:
    """All tokens are here. It is made at once: what it reads need not be kept."""
    made = attended(query, key, value)
    return lambda: made
