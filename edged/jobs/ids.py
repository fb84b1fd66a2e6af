"""Which job has which id, in memory: ids are random, so that each new one would cost the card a page of an index.

A job takes 16 bytes: what Python's hash makes of its id, and its number, in two arrays in the order of the hashes. What
came last waits in a dictionary and is sorted in with others.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_RECENT = 4096


class Ids:
    """The number of the job that has an id. The caller looks whether it has: two ids may share a hash (2**-64)."""

    def __init__(self, jobs: Iterable[tuple[int, str]]) -> None:
        """`jobs`: number and id of each."""
        pairs = np.fromiter(((hash(id), seq) for seq, id in jobs), np.dtype((np.int64, 2)))
        order = np.argsort(pairs[:, 0], kind="stable")
        self._hashes, self._seqs = pairs[order, 0], pairs[order, 1]
        self._recent: dict[int, int] = {}

    def get(self, id: str) -> int | None:
        """The job that came with this id last, None if there is none."""
        key = hash(id)
        place = self._place(key)
        return self._recent.get(key) or (None if place is None else int(self._seqs[place]) or None)

    def add(self, seq: int, id: str) -> None:
        """One more job."""
        self._recent[hash(id)] = seq
        if len(self._recent) > _RECENT:
            self._sort_in()

    def discard(self, seq: int, id: str) -> None:
        """A job that is no more, unless its id is another's by now."""
        key = hash(id)
        place = self._place(key)
        if self._recent.get(key) == seq:
            del self._recent[key]
        if place is not None and self._seqs[place] <= seq:
            self._seqs[place] = 0

    def _place(self, key: int) -> int | None:
        place = int(np.searchsorted(self._hashes, key))
        return place if place < len(self._hashes) and self._hashes[place] == key else None

    def _sort_in(self) -> None:
        new = np.fromiter(self._recent.items(), np.dtype((np.int64, 2)))
        kept = (self._seqs != 0) & ~np.isin(self._hashes, new[:, 0])
        hashes = np.concatenate([self._hashes[kept], new[:, 0]])
        order = np.argsort(hashes, kind="stable")
        self._seqs = np.concatenate([self._seqs[kept], new[:, 1]])[order]
        self._hashes = hashes[order]
        self._recent.clear()
