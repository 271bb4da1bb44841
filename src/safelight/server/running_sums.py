"""How much lies before something in a line, without a walk along the line: a Fenwick tree that grows at its end.

Fenwick, A new data structure for cumulative frequency tables (1994).
"""

from __future__ import annotations


class RunningSums:
    """Values by number, from 0 on. All methods take O(log n)."""

    def __init__(self) -> None:
        self._tree = [0.0]  # entry n: the sum of as many values up to the n-th as n's lowest bit says

    def __len__(self) -> int:
        return len(self._tree) - 1

    def append(self, value: float) -> int:
        """Its number."""
        number = end = len(self)
        start = number & (number + 1)
        while end > start:
            value += self._tree[end]
            end &= end - 1
        self._tree.append(value)
        return number

    def add(self, number: int, change: float) -> None:
        """Changes one value by so much."""
        place = number + 1
        while place < len(self._tree):
            self._tree[place] += change
            place += place & -place

    def before(self, number: int) -> float:
        """The sum of the values with smaller numbers."""
        total = 0.0
        while number:
            total += self._tree[number]
            number &= number - 1
        return total
