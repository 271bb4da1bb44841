"""Answers about all devices that are found once, not for every job."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from safelight.server.changes import Changes

About = TypeVar("About", bound=Hashable)
Answer = TypeVar("Answer")


class Remembered(Generic[About, Answer]):
    """A function whose answers hold until something is announced."""

    def __init__(self, changes: Changes, find: Callable[[About], Answer]) -> None:
        self._changes = changes
        self._find = find
        self._answers: dict[About, Answer] = {}
        self._count = changes.count

    def __call__(self, about: About) -> Answer:
        """What was found since the last announcement, else what is found now."""
        if self._count != self._changes.count:
            self._answers.clear()
            self._count = self._changes.count
        if about not in self._answers:
            self._answers[about] = self._find(about)
        return self._answers[about]
