"""Follows a server's state from threads, through its restarts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.client import Client
from safelight.errors import SafelightError, Unavailable

_PAUSE_S = 1.0
_LISTED_JOBS = 100


@dataclass(frozen=True, slots=True)
class View:
    """What is known now: the last status, when it came (``time.monotonic``), the newest jobs of this caller, and what
    is wrong with the connection.
    """

    status: dict[str, Any] | None = None
    received_s: float = 0.0
    jobs: list[dict[str, Any]] = field(default_factory=list)
    trouble: str | None = None
    refusal: SafelightError | None = None
    """An answer that asking again will not change."""


def look_once(client: Client) -> View:
    """The state now. Raises what the server answers."""
    return View(client.status(), time.monotonic(), client.jobs(_LISTED_JOBS))


class ServerFeed:
    """``view`` is always whole; ``on_change`` is called, on a thread, when there is another one."""

    def __init__(self, client: Client, on_change: Callable[[], None]) -> None:
        self.view = View()
        self._client = client
        self._on_change = on_change
        self._must_list = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """The threads end with the process."""
        for work in (self._follow, self._list):
            threading.Thread(target=work, daemon=True).start()

    def _set(self, **changes: Any) -> None:
        with self._lock:
            self.view = replace(self.view, **changes)
        self._on_change()

    def _follow(self) -> None:
        while self.view.refusal is None:
            try:
                for status in self._client.status_events():
                    self._set(status=status, received_s=time.monotonic(), trouble=None)
                    self._must_list.set()
                self._set(trouble="the server has stopped; waiting for the next one")
            except Unavailable:
                self._set(trouble="the server does not answer; trying again")
            except SafelightError as error:
                self._set(refusal=error)
            time.sleep(_PAUSE_S)

    def _list(self) -> None:
        """Once a second at most, however often the state changes."""
        while self.view.refusal is None:
            self._must_list.wait()
            self._must_list.clear()
            try:
                self._set(jobs=self._client.jobs(_LISTED_JOBS))
            except Unavailable:
                pass  # the other thread says so
            except SafelightError as error:
                self._set(refusal=error)
            time.sleep(_PAUSE_S)
