"""A worker process on a node of a Ray cluster, as the front sees it.

Calls of Ray may wait, for a node above all, and taking a result out of the object store copies it: all of that is done
in threads, never on the loop. They are daemons, so that one whose answer never comes does not keep the front from
ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from safelight import __version__
from safelight.errors import LoadError, ProtocolError
from safelight.protocol import Load, LoadFailed, Message, WorkerMessage

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_PATIENT_LOOKS = 10
_EXIT_GRACE_S = 4.0
_DUMP_S = 2.0
_BEGIN_S = 30.0
_NODE_DIED = "node has died"

T = TypeVar("T")
_decoder: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)


async def in_thread(work: Callable[[], T], timeout_s: float, then: Callable[[], object] = lambda: None) -> T:
    """What ``work`` returns or raises; ``TimeoutError`` if it takes longer, and then it is left alone.

    The thread goes on with ``then``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, result, error)
        then()

    _start_thread(run)
    return await asyncio.wait_for(done, timeout_s)


def _start_thread(work: Callable[..., None], *args: object) -> None:
    threading.Thread(target=work, args=args, name="ray", daemon=True).start()


@dataclass(frozen=True, slots=True)
class Birth:
    """What a process is started with: which worker it is, and the fingerprint of its model."""

    worker_id: int
    model: str
    environment: Mapping[str, str]
    options: Sequence[str]


class RayProcess:
    """As ``EngineProcess``. ``host`` is the handle of a ``WorkerHost``, which Ray may still have to find a node for."""

    def __init__(self, host: Any, birth: Birth, lease_s: float, on_line: Callable[[bytes], None]) -> None:
        self.node: str | None = None
        self._host = host
        self._birth = birth
        self._lease_s = lease_s
        self._on_line = on_line
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[WorkerMessage | ProtocolError | None] = asyncio.Queue()
        self._numbers = itertools.count()
        self._exit_code: int | None = None
        self._is_over = False
        _start_thread(self._follow)

    # --- on the loop --------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """As ``EngineProcess``."""
        number = next(self._numbers)
        _start_thread(self._deliver, number, message)

    async def receive(self) -> WorkerMessage | None:
        """As ``EngineProcess``; also once the node has been silent for as long as the lease."""
        if self._is_over and self._arrived.empty():
            return None
        message = await self._arrived.get()
        if isinstance(message, ProtocolError):
            raise message
        return message

    def kill(self) -> None:
        """As ``EngineProcess``: Ray ends the actor, and the kernel its worker with it."""
        if self._exit_code is None and not self._is_over:
            self._exit_code = -signal.SIGKILL
        self._end()
        _start_thread(self._kill)

    async def dump_stacks(self) -> None:
        """As ``EngineProcess``."""
        with contextlib.suppress(RayError, TimeoutError):
            await in_thread(lambda: ray.get(self._host.dump_stacks.remote(), timeout=_DUMP_S), _DUMP_S)

    async def stop(self, *, politely: bool) -> int | None:
        """As ``EngineProcess``."""
        if politely and not self._is_over:
            with contextlib.suppress(RayError, TimeoutError):
                self._exit_code = await in_thread(
                    lambda: ray.get(self._host.stop.remote(), timeout=_EXIT_GRACE_S), _EXIT_GRACE_S
                )
        self.kill()
        return self._exit_code

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._arrived.put_nowait(None)

    # --- in threads ---------------------------------------------------------------------------------------------------

    def _deliver(self, number: int, message: Message) -> None:
        if isinstance(message, Load):
            message = with_absolute_paths(message)
        with contextlib.suppress(RayError):  # whoever receives will be told
            self._host.deliver.remote(number, msgspec.msgpack.encode(message))

    def _kill(self) -> None:
        with contextlib.suppress(Exception):
            ray.kill(self._host)

    def _follow(self) -> None:
        """Hands on what comes, until the process has ended or its node is silent."""
        try:
            self._begin()
            while not self._is_over:
                packed, lines, exit_code = ray.get(self._host.reports.remote(), timeout=self._lease_s)
                for line in lines:
                    self._on_line(line)
                for message in packed:
                    self._hand_on(_decoder.decode(message))
                if exit_code is not None:
                    return self._call(self._ended, exit_code)
        except GetTimeoutError:
            log.warning("worker %d: node %s is silent", self._birth.worker_id, self.node)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._hand_on(ProtocolError(f"a message could not be read: {error}"))
        except RayTaskError as error:
            self._hand_on(_refused(error))
        except ActorDiedError as error:
            self._died(error)
        except RayError as error:
            log.warning("worker %d: node %s cannot be reached: %s", self._birth.worker_id, self.node, error)
        self._call(self._ended, None)

    def _begin(self) -> None:
        """Waits for a node, for as long as it takes."""
        birth, host = self._birth, self._host
        place = host.place.remote()
        for looks in itertools.count(1):
            with contextlib.suppress(GetTimeoutError):
                self.node = ray.get(place, timeout=_LOOK_S)
                break
            if self._is_over:
                return
            if looks == _PATIENT_LOOKS:
                log.warning(
                    "worker %d waits: Ray has no node with room for it, `ray status` says more", birth.worker_id
                )
        begun = host.begin.remote(__version__, self.node, birth.model, birth.environment, birth.options)
        pid = ray.get(begun, timeout=max(self._lease_s, _BEGIN_S))
        log.info("worker %d runs on node %s, pid %d", birth.worker_id, self.node, pid)

    def _died(self, error: ActorDiedError) -> None:
        """Ray says why, in words only."""
        if error.actor_init_failed:
            self._hand_on(_refused(error))
        elif _NODE_DIED not in str(error):
            self._call(self._ended, -signal.SIGKILL)

    def _ended(self, exit_code: int | None) -> None:
        if not self._is_over:
            self._exit_code = exit_code
            self._end()

    def _hand_on(self, message: WorkerMessage | ProtocolError) -> None:
        self._call(self._arrived.put_nowait, message)

    def _call(self, work: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(work, *args)


def with_absolute_paths(load: Load) -> Load:
    """Another machine may have a file or a folder at the same place, but never at the same relative one."""
    model, base_model = load.model, load.base_model
    return msgspec.structs.replace(
        load,
        model=_absolute(model),
        base_model=base_model and _absolute(base_model),
        models_dir=str(Path(load.models_dir).absolute()),
        loras_dir=str(Path(load.loras_dir).absolute()),
    )


def _absolute(model: str) -> str:
    path = Path(model)
    return str(path.absolute()) if path.exists() else model


def _refused(error: RayError) -> LoadFailed:
    """The node cannot run the worker as it is; what it says last is why."""
    cause = getattr(error, "cause", None)
    text = cause.message if isinstance(cause, LoadError) else str(error).strip().splitlines()[-1]
    return LoadFailed(LoadError.code, f"a node of the cluster cannot run the worker: {text}")
