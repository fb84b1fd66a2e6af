"""Publications that the broker refused for the moment: each is due again after a pause. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

LONGEST_PAUSE = 60.0
"""Seconds. The pauses begin with one second and double up to this."""
FIRST_LONG_PAUSE, LONGEST_LONG_PAUSE = 3600.0, 24 * 3600.0
"""The same for what costs the connection at each attempt."""
T = TypeVar("T", bound=Hashable)


class Deferred(Generic[T]):
    """Times are CLOCK_MONOTONIC seconds."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, T]] = []
        self._refusals: Counter[T] = Counter()
        self._quota_refusals = 0
        self._quota_until = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, publication: T, now: float, quota: bool) -> float:
        """The broker refused it; returns the seconds of the pause. `quota`: others would be refused now too."""
        self._refusals[publication] += 1
        pause = _pause(self._refusals[publication])
        self._waiting.append((now + pause, publication))
        if quota:
            self.hold(now)
        return pause

    def put_off(self, publication: T, now: float) -> None:
        """The broker closed the connection on it."""
        self._refusals[publication] += 1
        pause = _pause(self._refusals[publication], FIRST_LONG_PAUSE, LONGEST_LONG_PAUSE)
        self._waiting.append((now + pause, publication))

    def hold(self, now: float) -> None:
        """The broker says that there were too many: publish no result for a while."""
        if now >= self._quota_until:  # of a window that is refused together, the first
            self._quota_refusals += 1
            self._quota_until = now + _pause(self._quota_refusals)

    def take(self, now: float) -> list[T]:
        """What is due again."""
        due = [publication for at, publication in self._waiting if now >= at]
        self._waiting = [(at, publication) for at, publication in self._waiting if now < at]
        return due

    def closed(self, now: float) -> bool:
        """Whether the quota says to publish no result now."""
        return now < self._quota_until

    def open(self) -> None:
        """The broker has taken a result: the next pause is a short one again."""
        self._quota_refusals = 0

    def forget(self, publication: T) -> None:
        """It is published no more, or the broker has taken it."""
        self._refusals.pop(publication, None)


def _pause(refusals: int, first: float = 1.0, longest: float = LONGEST_PAUSE) -> float:
    return min(longest, first * 2.0 ** min(refusals - 1, 10))
