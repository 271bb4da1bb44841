"""The forward over parts of the tokens, in every number format: its members are threads, what they exchange lists."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.flux.operations import Operations
from safelight.engine.flux.shared_forward import SharedForward
from safelight.engine.flux.transformer import LeanTransformer
from safelight.engine.team import Team

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")


class _Exchange:
    """What the members of a team have in common."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[tuple[int, int], torch.Tensor] = {}
        self.barrier = threading.Barrier(size, timeout=60)


class _Member:
    """As ``Team``."""

    def __init__(self, exchange: _Exchange, rank: int) -> None:
        self.size, self.rank = exchange.size, rank
        self.exchanges = 0
        self._exchange = exchange

    def gather(self, own: torch.Tensor) -> Callable[[], torch.Tensor]:
        number, self.exchanges = self.exchanges, self.exchanges + 1
        self._exchange.parts[number, self.rank] = own

        def wait() -> torch.Tensor:
            self._exchange.barrier.wait()
            return torch.stack([self._exchange.parts[number, rank] for rank in range(self.size)])

        return wait


@pytest.fixture(scope="module")
def diffusers_model() -> Any:
    from diffusers import FluxTransformer2DModel

    folder = open_checkpoint(EMBEDDED_MODEL).path / "transformer"
    return FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float32).eval()


def _arguments(transformer: LeanTransformer, dtype: torch.dtype, rows: int, text: int) -> tuple[Any, ...]:
    """A picture of 5x7 tokens that is drawn beside a reference of 3x4."""
    torch.manual_seed(rows)
    latents = torch.randn(rows, 35 + 12, 96, dtype=dtype)
    embeds = transformer.project_text(torch.randn(rows * text, 192, dtype=dtype)).unflatten(0, (rows, text))
    modulations = [
        transformer.modulations(torch.tensor([time]), 3.5, torch.randn(1, 128, dtype=dtype)) for time in (900.0, 300.0)
    ]
    return latents, embeds, torch.cat(modulations[:rows]), transformer.rope(text, (5, 7), (3, 4))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "float8", "largest_error"),
    [(torch.float32, False, 1e-5), (torch.bfloat16, False, 0.02), (torch.float32, True, 0.02)],
    ids=["float32", "bfloat16", "float8"],
)
def test_all_members_get_the_velocity_that_one_computes(
    diffusers_model: Any, dtype: torch.dtype, float8: bool, largest_error: float, rows: int, size: int
) -> None:
    """In few bits other orders of summing round differently."""
    model = copy.deepcopy(diffusers_model).to(dtype)
    transformer = LeanTransformer(model, Operations(float8=float8))
    with torch.inference_mode():
        arguments = _arguments(transformer, dtype, rows, text=23)
        expected = transformer(*arguments).float()
    members = [_Member(exchange, rank) for exchange in [_Exchange(size)] for rank in range(size)]

    def draw(member: _Member) -> torch.Tensor:
        with torch.inference_mode():
            return SharedForward(transformer, cast(Team, member))(*arguments).float()

    with ThreadPoolExecutor(size) as threads:
        found = list(threads.map(draw, members))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert float((found[0] - expected).norm() / expected.norm()) < largest_error
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    assert {member.exchanges for member in members} == {blocks + 1}, "one exchange for each attention, and the end"
