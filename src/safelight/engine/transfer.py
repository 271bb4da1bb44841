"""Fills tensors on a device from files: several threads, each with buffers and a link to the device of its own.

A thread reads into one buffer while the device fetches the other; reading and copying let go of the GIL. Nothing is
mapped: a mapped file is pageable memory, which CUDA copies slowly and one after the other, and a file that shrinks
meanwhile would end the process.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from safelight.engine.encodings import Encoding
from safelight.engine.links import CudaLink, HostLink, Link, Mark
from safelight.errors import CheckpointInvalid

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 16 * 2**20
"""Read and copied at once; two buffers of it a thread."""

_MAX_THREADS = {"cuda": 8, "cpu": 4}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of a file from ``offset`` on, all of one encoding.

    ``targets`` are one-dimensional tensors that take it up one after the other, in a dtype of their own.
    """

    component: str
    path: Path
    offset: int
    encoding: Encoding
    targets: list[torch.Tensor]

    @property
    def file_bytes(self) -> int:
        return sum(self.bytes_of(target) for target in self.targets)

    def bytes_of(self, target: torch.Tensor) -> int:
        """Of the file, those that make one of the targets."""
        return target.numel() // self.encoding.block_values * self.encoding.block_bytes


class _Lane:
    """Carries chunks over one link, with two buffers in turn."""

    def __init__(self, link: Link, arrived: Callable[[Chunk], None]) -> None:
        self._link = link
        self._arrived = arrived
        self._free = [link.buffer(CHUNK_BYTES) for _ in range(2)]
        self._under_way: deque[tuple[Mark, torch.Tensor, Chunk]] = deque()

    def carry(self, chunk: Chunk) -> None:
        if not self._free:
            self._land()
        buffer = self._free.pop()
        content = buffer[: chunk.file_bytes]
        _read(chunk, content.numpy().data)
        begin = 0
        for target in chunk.targets:
            end = begin + chunk.bytes_of(target)
            self._link.copy(target, content[begin:end], chunk.encoding)
            begin = end
        self._under_way.append((self._link.mark(), buffer, chunk))

    def finish(self) -> None:
        while self._under_way:
            self._land()

    def _land(self) -> None:
        mark, buffer, chunk = self._under_way.popleft()
        mark.synchronize()
        self._free.append(buffer)
        self._arrived(chunk)


def _read(chunk: Chunk, buffer: memoryview) -> None:
    try:
        with chunk.path.open("rb", buffering=0) as file:
            file.seek(chunk.offset)
            while buffer:
                read_bytes = file.readinto(buffer)
                if not read_bytes:
                    raise CheckpointInvalid(f"{chunk.path} became shorter while it was read")
                buffer = buffer[read_bytes:]
    except OSError as error:
        raise CheckpointInvalid(f"{chunk.path} cannot be read: {error.strerror}") from None


class Transfer:
    """Threads that carry chunks. A context: at its end none of them runs, also if it ends by an exception.

    Only the thread that made it calls its methods.
    """

    def __init__(self, open_link: Callable[[], Link], threads: int) -> None:
        self._waiting: SimpleQueue[Chunk | None] = SimpleQueue()
        self._ended: SimpleQueue[Chunk | BaseException] = SimpleQueue()
        self._stop = threading.Event()
        self._under_way = 0
        self._threads = [
            threading.Thread(target=self._work, args=(open_link,), name=f"read_{index}") for index in range(threads)
        ]

    @classmethod
    def to(cls, device: torch.device) -> Transfer:
        """With as many threads as the device and this machine's cores are good for."""
        threads = min(_MAX_THREADS[device.type], os.cpu_count() or 1)
        return cls((lambda: CudaLink(device)) if device.type == "cuda" else HostLink, threads)

    def __enter__(self) -> Transfer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._close()
        for thread in self._threads:
            thread.join()

    def send(self, chunks: Iterable[Chunk]) -> None:
        """Gives work to the threads and returns at once."""
        for chunk in chunks:
            self._under_way += 1
            self._waiting.put(chunk)

    def arrived(self) -> Iterator[Chunk]:
        """The chunks that have come to lie on the device since last asked. Raises the error that stopped a thread."""
        while not self._ended.empty():
            yield self._next()

    def finish(self) -> Iterator[Chunk]:
        """As ``arrived``, until everything has; nothing can be sent any more."""
        self._close()
        while self._under_way:
            yield self._next()

    def _next(self) -> Chunk:
        ended = self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        self._under_way -= 1
        return ended

    def _close(self) -> None:
        for _ in self._threads:
            self._waiting.put(None)

    def _work(self, open_link: Callable[[], Link]) -> None:
        try:
            lane = _Lane(open_link(), self._ended.put)
            try:
                while (chunk := self._waiting.get()) and not self._stop.is_set():
                    lane.carry(chunk)
            finally:
                lane.finish()
        except BaseException as error:
            self._stop.set()
            self._ended.put(error)
