"""Threads that carry bytes from files to tensors: whole, bounded, stopped together, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safelight.engine import transfer
from safelight.engine.encodings import Encoding, Plain
from safelight.engine.links import HostLink, Link, Mark
from safelight.engine.transfer import Chunk, Transfer
from safelight.errors import CheckpointInvalid

CHUNK_BYTES = 64
COUNT = 50

Asked = tuple[torch.Tensor, torch.Tensor, Encoding]


class LateLink(HostLink):
    """As a device may: copies nothing before somebody waits for it."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []

    def copy(self, target: torch.Tensor, content: torch.Tensor, encoding: Encoding) -> None:
        self._asked.append((target, content, encoding))

    def mark(self) -> Mark:
        asked, self._asked = self._asked, []
        return _Late(asked)


class _Late:
    def __init__(self, asked: list[Asked]) -> None:
        self._asked = asked

    def synchronize(self) -> None:
        for target, content, encoding in self._asked:
            target.copy_(encoding.decode(content))


class SlowLink(HostLink):
    def copy(self, target: torch.Tensor, content: torch.Tensor, encoding: Encoding) -> None:
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", CHUNK_BYTES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(index % 251 for index in range(CHUNK_BYTES * COUNT)))
    return path


def _chunks(path: Path, into: torch.Tensor) -> list[Chunk]:
    """Two targets each, of unequal length."""
    return [
        Chunk(
            "part",
            path,
            offset,
            Plain(torch.uint8),
            [into[offset : offset + 10], into[offset + 10 : offset + CHUNK_BYTES]],
        )
        for offset in range(0, CHUNK_BYTES * COUNT, CHUNK_BYTES)
    ]


def _readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read_")]


@pytest.mark.parametrize("open_link", [HostLink, LateLink])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_every_byte_arrives_and_no_buffer_is_used_again_too_early(
    open_link: Callable[[], Link], threads: int, kind: torch.dtype, file: Path
) -> None:
    into = torch.zeros(CHUNK_BYTES * COUNT, dtype=kind)
    with Transfer(open_link, threads) as carrier:
        carrier.send(_chunks(file, into))
        arrived = list(carrier.finish())
    assert bytes(into.to(torch.uint8).numpy()) == file.read_bytes()
    assert sum(chunk.file_bytes for chunk in arrived) == CHUNK_BYTES * COUNT
    assert not _readers()


def test_chunks_count_only_once_they_lie_on_the_device(file: Path) -> None:
    into = torch.full((CHUNK_BYTES * COUNT,), 255, dtype=torch.uint8)
    with Transfer(LateLink, 2) as carrier:
        carrier.send(_chunks(file, into))
        for chunk in carrier.finish():
            assert all((target != 255).all() for target in chunk.targets)


def test_work_can_be_sent_while_other_work_arrives(file: Path) -> None:
    into = torch.zeros(CHUNK_BYTES * COUNT, dtype=torch.uint8)
    seen = 0
    with Transfer(HostLink, 2) as carrier:
        for chunk in _chunks(file, into):
            carrier.send([chunk])
            seen += len(list(carrier.arrived()))
        seen += len(list(carrier.finish()))
    assert seen == COUNT
    assert bytes(into.numpy()) == file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "weights cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "weights became shorter"),
    ],
    ids=["gone", "shrunk"],
)
def test_a_file_that_changes_meanwhile_is_named_and_stops_all_threads(
    damage: Callable[[Path], object], sentence: str, file: Path
) -> None:
    into = torch.zeros(CHUNK_BYTES * COUNT, dtype=torch.uint8)
    chunks = _chunks(file, into)
    damage(file)
    with pytest.raises(CheckpointInvalid, match=sentence), Transfer(HostLink, 3) as carrier:
        carrier.send(chunks)
        for _ in carrier.finish():
            pass
    assert not _readers()


def test_an_error_outside_stops_the_threads_before_their_work_is_done(file: Path) -> None:
    into = torch.zeros(CHUNK_BYTES * COUNT, dtype=torch.uint8)
    with pytest.raises(KeyError), Transfer(SlowLink, 2) as carrier:
        carrier.send(_chunks(file, into))
        next(carrier.finish())
        raise KeyError
    assert not _readers()
    assert carrier._waiting.qsize() > COUNT // 2


def test_a_device_without_memory_for_the_buffers_is_an_error_not_a_wait(file: Path) -> None:
    def open_link() -> Link:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), Transfer(open_link, 3) as carrier:
        carrier.send(_chunks(file, torch.zeros(CHUNK_BYTES * COUNT, dtype=torch.uint8)))
        list(carrier.finish())
    assert not _readers()


def test_nothing_sent_is_nothing_to_wait_for() -> None:
    with Transfer.to(torch.device("cpu")) as carrier:
        assert list(carrier.finish()) == []
    assert not _readers()
