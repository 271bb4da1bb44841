"""Pictures that two or three real processes make together are those that one makes; whoever is left behind goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.config import EMBEDDED_MODEL
from safelight.engine.flux.shared_forward import parts
from safelight.params import GenerationParams, LoraUse, SourceImage
from safelight.protocol import Cancel, Cancelled, Disband, Disbanded, Generate, Helped, Load, Succeeded, TeamPlace
from tests.lora_files import embedded_layers, random_matrices, write_diffusers
from tests.worker_children import WorkerChild, order_team, step_made, worker_children

_numbers = itertools.count()


class Fleet:
    """Three workers with the embedded model; the tests of this file run in order on one loop of its own."""

    def __init__(self, runner: asyncio.Runner, workers: list[WorkerChild], folder: Path) -> None:
        self.run = runner.run
        self.workers = workers
        self.folder = folder

    def team(self, size: int) -> tuple[list[WorkerChild], Path]:
        return self.workers[:size], self.folder / f"team of {size}"

    def alone(self, params: GenerationParams, image: bytes | None = None) -> Succeeded:
        async def draw() -> Succeeded:
            self.workers[0].send(Generate(f"job_{next(_numbers)}", 1, params, image=image))
            outcome = await self.workers[0].outcome()
            assert isinstance(outcome, Succeeded), outcome
            return outcome

        return self.run(draw())

    def together(self, size: int, params: GenerationParams, image: bytes | None = None) -> Succeeded:
        async def draw() -> Succeeded:
            members, rendezvous = self.team(size)
            order_team(members, rendezvous, params, f"job_{next(_numbers)}", image)
            leading, *helping = [await member.outcome() for member in members]
            assert isinstance(leading, Succeeded), leading
            assert all(isinstance(outcome, Helped) for outcome in helping), helping
            return leading

        return self.run(draw())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    write_diffusers(folder / "loras" / "strong.safetensors", random_matrices(embedded_layers(), 6, seed=3))
    load = Load(EMBEDDED_MODEL, "cpu", "float32", [(64, 64)], loras_dir=str(folder / "loras"))
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        workers = worker_children(load, 3)
        fleet = Fleet(runner, runner.run(workers.__aenter__()), folder)
        stack.callback(lambda: runner.run(workers.__aexit__(None, None, None)))
        yield fleet


def _params(width: int = 128, height: int = 128, **members: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a large red circle on a blue background",
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 24,
        "seed": 5,
    }
    return GenerationParams(width=width, height=height, **defaults | members)


def _pixels(outcome: Succeeded) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.stack([np.asarray(Image.open(io.BytesIO(image.data)), dtype=np.int16) for image in outcome.images])


def _source(width: int, height: int) -> bytes:
    made = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "params",
    [
        _params(),
        _params(160, 224, max_sequence_length=23),  # 35 tokens of picture, 23 of text: nothing comes out even
        _params(96, 96, max_sequence_length=1, guidance_scale=9.0),  # not all members have a token of the text
        _params(96, 160, true_cfg_scale=3.0, negative_prompt="a blue square", num_images=2),
        _params(loras=(LoraUse("strong", 0.8),)),
    ],
    ids=["even", "odd", "one-word", "true-cfg", "lora"],
)
def test_a_picture_of_several_workers_is_that_of_one(fleet: Fleet, params: GenerationParams, size: int) -> None:
    alone, together = _pixels(fleet.alone(params)), _pixels(fleet.together(size, params))
    assert np.abs(alone - together).max() <= 1
    assert alone.max() - alone.min() > 50


def test_a_picture_that_begins_with_another_is_the_same_too(fleet: Fleet) -> None:
    params = _params(96, 128, source=SourceImage("source.png", strength=0.7))
    image = _source(96, 128)
    assert np.abs(_pixels(fleet.alone(params, image)) - _pixels(fleet.together(2, params, image))).max() <= 1


def test_only_the_leader_shows_previews(fleet: Fleet) -> None:
    together = fleet.together(2, _params(partial_images=2))
    assert len(together.images) == 1


def test_a_cancel_of_the_leader_takes_all_along_and_they_stay_a_team(fleet: Fleet) -> None:
    async def cancel() -> list[Any]:
        members, rendezvous = fleet.team(3)
        order_team(members, rendezvous, _params(num_inference_steps=90), "long")
        await step_made(members[0], 2)
        for member in reversed(members):  # the front tells all; the others must not stop before their leader does
            member.send(Cancel("long"))
        return [await member.outcome() for member in members]

    assert fleet.run(cancel()) == [Cancelled("long", 1)] * 3
    assert fleet.together(3, _params()).images


def test_a_cancel_before_the_first_step_leaves_nobody_waiting(fleet: Fleet) -> None:
    async def cancel() -> list[Any]:
        members, rendezvous = fleet.team(2)
        order_team(members, rendezvous, _params(num_inference_steps=90), "short")
        members[0].send(Cancel("short"))
        return [await member.outcome() for member in members]

    assert fleet.run(cancel()) == [Cancelled("short", 1)] * 2
    assert fleet.together(2, _params()).images


def test_one_whose_job_fails_alone_takes_none_of_the_others_along(fleet: Fleet) -> None:
    """The leader finds no adapter; the helper, which waits for it, is told to let go. Both are of use again."""

    async def fail() -> list[Any]:
        members = fleet.workers[:2]
        for rank, member in enumerate(members):
            asked = _params(num_inference_steps=90) if rank else _params(loras=(LoraUse("missing"),))
            place = TeamPlace(rank, 2, str(fleet.folder / "unequal"))
            member.send(Generate("unequal", 1, asked, team=place))
        failed = await members[0].outcome()
        members[1].send(Disband("unequal"))
        return [failed, await members[1].outcome()]

    failed, helper = fleet.run(fail())
    assert failed.code == "invalid_value"
    assert isinstance(helper, Disbanded)
    assert fleet.alone(_params()).images


def test_those_whose_member_died_say_so_and_are_of_use_again(fleet: Fleet) -> None:
    async def kill() -> list[Any]:
        members, rendezvous = fleet.team(3)
        order_team(members, rendezvous, _params(num_inference_steps=90), "lost")
        await step_made(members[0], 2)
        members[2].process.kill()
        return [await member.outcome() for member in members[:2]]

    leader, helper = fleet.run(kill())
    assert isinstance(leader, Disbanded)
    assert isinstance(helper, Disbanded)
    assert fleet.alone(_params()).images
    assert fleet.together(2, _params()).images


@pytest.mark.parametrize(("total", "size"), [(24, 2), (23, 2), (7, 3), (8, 3), (1, 3)])
def test_every_token_is_somebodys_and_the_first_ones_have_most(total: int, size: int) -> None:
    found = parts(total, size)
    assert [token for part in found for token in range(total)[part]] == list(range(total))
    counts = [part.stop - part.start for part in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
