"""The actor on a node of a Ray cluster: it has one worker process, as the front has those of its own machine.

The worker itself is the same program, started and ended by the same ``WorkerProcess``; what the actor adds is the way
between it and the front.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray

from safelight import __version__
from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.checkpoint.fingerprint import fingerprint
from safelight.config import ENV_PREFIX
from safelight.errors import CheckpointInvalid, LoadError, ProtocolError
from safelight.hub.manifest import read_manifest
from safelight.protocol import FrontMessage, Load, LoadFailed, Message, WorkerMessage
from safelight.server.data_directory import compile_cache
from safelight.server.worker_process import WorkerProcess

_BEAT_S = 1.0
_LEASE_PARTS = 4

Reports = tuple[list[bytes], list[bytes], int | None]
"""Messages of the worker, lines of its log, and its exit code once it is gone."""


class WorkerHost:
    """``begin`` first. Ends itself and its process when the front asks for no reports for ``lease_s`` seconds."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._node = ""
        self._model = ""
        self._begun = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._messages: list[bytes] = []
        self._lines: list[bytes] = []
        self._exit_code: int | None = None
        self._is_stopping = False
        self._news = asyncio.Event()
        self._early: dict[int, bytes] = {}
        self._taken = 0
        self._asked_s = time.monotonic()
        self._decoder: msgspec.msgpack.Decoder[FrontMessage] = msgspec.msgpack.Decoder(FrontMessage)

    # --- what the front calls -----------------------------------------------------------------------------------------

    async def place(self) -> str:
        """The node: its address, and the beginning of its id in Ray."""
        return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"

    async def begin(
        self, version: str, node: str, model: str, environment: Mapping[str, str], options: Sequence[str]
    ) -> int:
        """Starts the process for a model with this fingerprint; its pid. Raises ``LoadError``, ``OSError``."""
        if version != __version__:
            raise LoadError(f"node {node} has Safelight {__version__}, the front {version}: install the same on both")
        self._node, self._model, self._asked_s = node, model, time.monotonic()
        self._start(self._keep_lease())
        self._process = await WorkerProcess.spawn(environment, options, on_line=self._add_line)
        self._start(self._relay(self._process))
        self._begun.set()
        return self._process.pid

    async def deliver(self, number: int, message: bytes) -> None:
        """For the worker, in the order of their numbers from 0, whichever arrives first."""
        self._early[number] = message
        await self._begun.wait()
        while (due := self._early.pop(self._taken, None)) is not None:
            self._taken += 1
            self._take(self._decoder.decode(due))

    async def reports(self) -> Reports:
        """What came since the last time, once there is something or a moment has passed. Prolongs the lease."""
        self._asked_s = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(_BEAT_S, self._lease_s / _LEASE_PARTS)):
                await self._news.wait()
        self._news.clear()
        found = self._messages, self._lines, self._exit_code
        self._messages, self._lines = [], []
        return found

    async def dump_stacks(self) -> None:
        """As ``WorkerProcess.dump_stacks``; they come with the reports."""
        if self._process is not None:
            await self._process.dump_stacks()

    async def stop(self) -> int | None:
        """Ends the process politely; its exit code."""
        self._is_stopping = True
        return None if self._process is None else await self._process.stop(politely=True)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, process: WorkerProcess) -> None:
        """Until the process has ended."""
        try:
            while (message := await process.receive()) is not None:
                self._report(self._placed(message))
        except ProtocolError as error:
            self._add_line(f"a message of the worker cannot be read, so it is ended: {error}\n".encode())
        self._exit_code = await process.stop(politely=self._is_stopping)
        self._news.set()

    async def _keep_lease(self) -> None:
        """A front that is silent has lost this actor, and its jobs run elsewhere by now."""
        while True:
            left_s = self._asked_s + self._lease_s - time.monotonic()
            if left_s <= 0:
                os._exit(1)  # and the kernel ends the worker with its parent
            await asyncio.sleep(left_s)

    async def _load(self, load: Load) -> None:
        load = at_node(load, os.environ)
        try:
            await asyncio.to_thread(self._check, load)
        except (LoadError, OSError) as error:
            code, text = (error.code, error.message) if isinstance(error, LoadError) else (LoadError.code, str(error))
            self._report(self._placed(LoadFailed(code, text)))
        else:
            assert self._process is not None
            self._process.send(load)

    def _check(self, load: Load) -> None:
        checkpoint = open_checkpoint(load.model, Path(load.models_dir), load.base_model)
        if fingerprint(checkpoint) != self._model:
            raise CheckpointInvalid(
                f"{load.model} is another model than the front has{_commit_of(checkpoint)}: "
                "copy the front's files, or pull the same commit"
            )

    # --- messages -----------------------------------------------------------------------------------------------------

    def _take(self, message: FrontMessage) -> None:
        if isinstance(message, Load):
            self._start(self._load(message))
        elif self._process is not None:
            self._process.send(message)

    def _placed(self, message: WorkerMessage) -> WorkerMessage:
        """What failed may work on another node: the sentence has to name this one."""
        if isinstance(message, LoadFailed):
            return LoadFailed(message.code, f"on node {self._node}: {message.message}")
        return message

    def _report(self, message: Message) -> None:
        self._messages.append(msgspec.msgpack.encode(message))
        self._news.set()

    def _add_line(self, line: bytes) -> None:
        self._lines.append(line)
        self._news.set()


def at_node(load: Load, environment: Mapping[str, str]) -> Load:
    """With the folders of this node, as its own ``SAFELIGHT_*`` variables name them, else as the front's are called."""
    data_dir = environment.get(f"{ENV_PREFIX}DATA_DIR")
    models_dir = environment.get(f"{ENV_PREFIX}MODELS_DIR") or (data_dir and f"{data_dir}/models")
    loras_dir = environment.get(f"{ENV_PREFIX}LORAS_DIR") or (data_dir and f"{data_dir}/loras")
    cache_parent = Path(data_dir) if data_dir else Path(load.cache_dir).parent
    return msgspec.structs.replace(
        load,
        models_dir=models_dir or load.models_dir,
        loras_dir=loras_dir or load.loras_dir,
        cache_dir=compile_cache(cache_parent) if load.cache_dir and cache_parent.is_dir() else "",
    )


def _commit_of(checkpoint: Checkpoint) -> str:
    manifests = [read_manifest(folder) for folder in checkpoint.folders]
    commits = [f"{found.repository}@{found.commit[:12]}" for found in manifests if found is not None]
    return f" ({', '.join(commits)} here)" if commits else ""
