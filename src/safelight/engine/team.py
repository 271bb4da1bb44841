"""Workers that make the steps of a job together: how they meet, agree on each step, exchange tensors, and part.

Two lines between them: one on the host, over which the leader says before each step whether it comes, and one between
the devices (NCCL on CUDA). On the CPU they are one, by gloo.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from safelight.errors import JobCancelled
from safelight.protocol import TeamPlace

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_MEET_S = 60.0
_POLL_S = 0.002
_LONGEST_STEP = timedelta(hours=1)
"""Whoever hangs is ended by the front, which knows how long steps take."""

_ENVIRONMENT = {
    # All members are on this machine: nobody else is to reach them.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    # PyTorch's own watch over NCCL would end the process when another one dies; the front watches.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    # Nor is it to keep and write down what was exchanged, holding a lock meanwhile that the GPU thread needs.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1",
    "TORCH_FR_BUFFER_SIZE": "0",
}


class TeamLost(Exception):
    """A member died, left or did not come: what the team was at has no outcome."""


class Team:
    """This process's end of it, kept for jobs to come. The GPU thread's, but for ``abort``."""

    def __init__(self, place: TeamPlace, device: str) -> None:
        self.rank, self.size = place.rank, place.size
        self.is_lost = False
        self._rendezvous = place.rendezvous
        self._is_cuda = device.startswith("cuda")
        self._host: Any = None
        self._devices: Any = None

    def connect(self) -> None:
        """Meets the others, unless that was done before. Raises ``TeamLost``."""
        if self._host is not None or self.is_lost:
            return self._raise_if_lost()
        from torch import distributed

        dist: Any = distributed  # it does not say what it exports

        begun_s = time.monotonic()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with self._losing():
            store = dist.FileStore(self._rendezvous, self.size)
            self._wait_for_all(store)
            place = self.rank, self.size
            self._host = dist.ProcessGroupGloo(dist.PrefixStore("host", store), *place, timeout=_LONGEST_STEP)
            self._devices = self._nccl(dist, store) if self._is_cuda else self._host
        log.info("met as %d of %d within %.2f s", self.rank + 1, self.size, time.monotonic() - begun_s)

    def _nccl(self, dist: Any, store: Any) -> Any:
        import torch

        # Prior to products, which would leave it no multiprocessor for as long as they take.
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options._timeout = _LONGEST_STEP
        group = dist.ProcessGroupNCCL(dist.PrefixStore("devices", store), self.rank, self.size, options)
        group._set_sequence_number_for_group()
        self._devices = group  # so that it can be aborted from here on
        own = torch.full((1,), self.rank + 1, dtype=torch.int32, device="cuda")
        if self.gather(own)().sum().item() != self.size * (self.size + 1) // 2:  # it connects at its first use
            raise TeamLost("the devices do not understand each other")
        return group

    def _wait_for_all(self, store: Any) -> None:
        """Polls, so that it can be told to let go."""
        store.set(f"member {self.rank}", "here")
        members = [f"member {rank}" for rank in range(self.size)]
        end_s = time.monotonic() + _MEET_S
        while not store.check(members):
            self._raise_if_lost()
            if time.monotonic() > end_s:
                raise TeamLost(f"not all of {self.size} workers came within {_MEET_S:.0f} s")
            time.sleep(_POLL_S)

    def announce(self, *, goes_on: bool = True) -> bool:
        """The leader says whether a step comes, the others wait for its word and return that. Raises ``TeamLost``."""
        import torch

        self._raise_if_lost()
        word = torch.tensor([goes_on], dtype=torch.uint8)
        with self._losing():
            self._host.broadcast([word]).wait()
        return bool(word.item())

    def gather(self, own: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins to exchange ``own``, of one shape on all members; gives (size, ...). Raises ``TeamLost``, then too.

        On CUDA nothing waits but the device.
        """
        self._raise_if_lost()
        own = own.contiguous()
        whole = own.new_empty(self.size, *own.shape)
        with self._losing():
            work = self._devices._allgather_base(whole.view(-1), own.view(-1))

        def wait() -> torch.Tensor:
            with self._losing():
                work.wait()
            return whole

        return wait

    def abort(self) -> None:
        """Lets go of the others, and frees the device from waiting for them; from any thread, more than once."""
        self.is_lost = True
        host, devices = self._host, self._devices
        self._host = self._devices = None  # its sockets close when nobody uses them any more, which the others notice
        if devices is not None and devices is not host:
            try:
                devices.abort()
            except RuntimeError:
                log.exception("the connection between the devices could not be ended")

    def _raise_if_lost(self) -> None:
        if self.is_lost:
            raise TeamLost("the team was given up")

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of libraries, or ours where it was aborted meanwhile
            self.abort()
            raise TeamLost(f"worker {self.rank + 1} of {self.size} lost the others: {error}") from error


class Share:
    """One job of a team. Its steps are counted, so that whoever leaves before the last one leaves nobody waiting."""

    def __init__(self, team: Team, place: TeamPlace, steps: int) -> None:
        self.team = team
        self.is_leader = place.is_leader
        self._left = steps

    @property
    def is_lost(self) -> bool:
        return self.team.is_lost

    def begin(self) -> None:
        """Meets the others. Raises ``TeamLost``."""
        self.team.connect()

    def go_on(self) -> None:
        """Before each step. Raises ``JobCancelled`` where the leader says so, ``TeamLost``."""
        if not self.team.announce():
            self._left = 0
            raise JobCancelled("the job was cancelled at its leader")
        self._left -= 1

    def end(self, error: BaseException | None) -> None:
        """The job has ended, with this error: at a step that did not come for all, or for one member only.

        On the GPU thread. Never raises; does nothing the second time.
        """
        if self._left <= 0:
            return
        self._left = 0
        if not (self.is_leader and isinstance(error, JobCancelled)):
            return self.team.abort()
        with contextlib.suppress(TeamLost):
            self.team.connect()
            self.team.announce(goes_on=False)
