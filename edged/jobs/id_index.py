"""Which job has which id, in memory: ids are random, so that each new one would cost the card a page of an index.

A job takes 16 bytes: what Python's hash makes of its id, and its number, in arrays in the order of the hashes. What
came last waits in a dictionary and becomes an array with others; the arrays stay apart, since sorting all of them anew
each time would leave the process several times their size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RECENT = 4096
_ARRAYS = 64
"""A look takes some microseconds for each; beyond, they become one."""


class IdIndex:
    """The number of the job that has an id. The caller looks whether it has: two ids may share a hash (2**-64)."""

    def __init__(self, jobs: Iterable[tuple[int, str]]) -> None:
        """`jobs`: number and id of each."""
        self._arrays = [_sorted(_pairs((hash(id), number) for number, id in jobs))]
        self._recent: dict[int, int] = {}

    def get(self, id: str) -> int | None:
        """The job that came with this id last, None if there is none."""
        key = hash(id)
        if (recent := self._recent.get(key)) is not None:
            return recent
        found = (int(numbers[place]) for numbers, place in self._places(key))
        return next((number for number in found if number), None)

    def add(self, number: int, id: str) -> None:
        """One more job."""
        self._recent[hash(id)] = number
        if len(self._recent) > _RECENT:
            self._arrays.append(_sorted(_pairs(self._recent.items())))
            self._recent.clear()
            self._arrays = [(hashes, numbers) for hashes, numbers in self._arrays if numbers.any()]
            if len(self._arrays) > _ARRAYS:
                pairs = np.concatenate([np.stack(array, axis=1) for array in self._arrays])
                self._arrays = [_sorted(pairs[pairs[:, 1] != 0])]

    def discard(self, number: int, id: str) -> None:
        """A job that is no more, unless its id is another's by now."""
        key = hash(id)
        if self._recent.get(key) == number:
            del self._recent[key]
        for numbers, place in self._places(key):
            if numbers[place] <= number:
                numbers[place] = 0

    def _places(self, key: int) -> Iterable[tuple[NDArray[np.int64], int]]:
        """Where a hash stands, the newest first."""
        for hashes, numbers in reversed(self._arrays):
            place = int(np.searchsorted(hashes, key))
            if place < len(hashes) and hashes[place] == key:
                yield numbers, place


def _pairs(items: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    pairs: NDArray[Any] = np.fromiter(items, np.dtype((np.int64, 2)))
    return pairs


def _sorted(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hashes in order, and the number that came last with each."""
    hashes, last = np.unique(pairs[::-1, 0], return_index=True)
    return hashes, pairs[::-1, 1][last]
