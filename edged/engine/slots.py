"""Which sequence has which row of the KV cache: rows stay neighbours, and those that may share a step lie together."""

from __future__ import annotations

import time

from edged.engine.kv_cache import KVCache
from edged.engine.sequence import Sequence


class Slots:
    """Rows 0 … n-1 of the cache, each held by a sequence. The engine's thread owns it."""

    def __init__(self, cache: KVCache, count: int) -> None:
        """`count`: rows that sequences may have."""
        self._cache = cache
        self._count = count
        self._move_seconds = 0.0
        self.most = count
        """Sequences that are given one, fewer than there are where memory is short."""
        self.rows: list[Sequence] = []
        """The sequences by slot."""

    @property
    def free(self) -> int:
        """How many more sequences can be placed."""
        return max(0, min(self.most, self._count) - len(self.rows))

    def place(self, row: Sequence) -> None:
        """Give a sequence the next slot. Nothing of it may be computed."""
        self.rows.append(row)

    def remove(self, row: Sequence) -> None:
        """Free a sequence's slot. The last one moves into the gap."""
        slot = self.rows.index(row)
        last = self.rows.pop()
        if slot < len(self.rows):
            began = time.monotonic()
            self.rows[slot] = last
            self._cache.move(len(self.rows), slot, last.computed)
            self._move_seconds += time.monotonic() - began

    def arrange(self) -> None:
        """Make rows that may share a step neighbours."""
        began = time.monotonic()
        for one, other in swaps(self.rows):
            self._cache.swap(one, other, max(self.rows[one].computed, self.rows[other].computed))
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self._move_seconds += time.monotonic() - began

    def take_move_seconds(self) -> float:
        """Seconds that moving rows took since the last call."""
        seconds, self._move_seconds = self._move_seconds, 0.0
        return seconds


def swaps(rows: list[Sequence]) -> list[tuple[int, int]]:
    """Exchanges of two slots, in order, after which rows that may share a step are neighbours.

    Rows beyond a LongRoPE switch come first, then the others; on each side rows that are behind come last. So the slot
    after a lone row on the short side is never beyond the switch, and may be its companion.
    """
    classes = [(not row.long_rope, row.behind, row.alone) for row in rows]
    found = []
    for slot in range(len(classes)):
        least = min(classes[slot:])
        if classes[slot] != least:
            # The last of its kind: the rows between stay where they are.
            other = len(classes) - 1 - classes[::-1].index(least)
            classes[slot], classes[other] = classes[other], classes[slot]
            found.append((slot, other))
    return found
