"""Weights that visit a device: the right ones are there when they are used, whatever their number and sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from safelight.engine.weight_stream import WeightStream, visiting

CPU = torch.device("cpu")


def _group(index: int) -> list[torch.Tensor]:
    return [
        torch.full((index + 1, 3), float(index)),
        torch.full((5,), -index, dtype=torch.bfloat16),
        torch.full((2, 2), index).to(torch.float8_e4m3fn),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_each_group_is_there_when_it_is_used_pass_after_pass(count: int) -> None:
    stream = WeightStream(CPU)
    for index in range(count):
        stream.add(_group(index))
    views = stream.open()
    for _ in range(3):
        for index in range(count):
            stream.enter(index)
            for view, wanted in zip(views[index], _group(index), strict=True):
                assert view.dtype == wanted.dtype
                assert torch.equal(view.float(), wanted.float())
            stream.leave(index)


def test_the_order_may_be_left_and_taken_up_again() -> None:
    stream = WeightStream(CPU)
    for index in range(5):
        stream.add(_group(index))
    views = stream.open()
    for index in (0, 1, 2, 0, 4, 3, 3, 0):  # a step that failed begins again
        stream.enter(index)
        assert torch.equal(views[index][0], _group(index)[0])
        stream.leave(index)


def test_the_device_holds_two_groups_whatever_their_number() -> None:
    stream = WeightStream(CPU)
    for _ in range(20):
        stream.add([torch.zeros(1000)])
    memory = {view.untyped_storage().data_ptr(): view.untyped_storage().nbytes() for (view,) in stream.open()}
    assert len(memory) == 2
    assert sum(memory.values()) < 3 * 4000


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 4, 5])
def test_modules_that_visit_compute_what_resident_ones_do(count: int) -> None:
    torch.manual_seed(0)
    resident = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8)) for _ in range(count)))
    streamed = copy.deepcopy(resident)
    visiting(list(streamed), CPU)
    for _ in range(3):
        given = torch.randn(4, 8)
        assert torch.equal(streamed(given), resident(given))
    alone = torch.randn(4, 8)
    assert torch.equal(streamed[count - 1](alone), resident[count - 1](alone))
