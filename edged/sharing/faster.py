"""Whether other members are much faster than this one, which then lets its jobs wait a moment for them (pure).

A board that is ten times slower gets as many jobs of a group as any other. If it started each at once, as it has free
rows, each of these would take ten times as long while rows of fast members are free.
"""

from __future__ import annotations

FASTER = 2.0
"""Times the speed of this member from which on another one is worth waiting for."""
REMEMBERED_SECONDS = 600.0
"""For how long it is remembered that others are faster; a member that knows of none looks so often."""
RECENT_SECONDS = 20.0
"""How long a job waits at most, and only while a faster member has had a free row as lately as that."""
LOOK_SECONDS = 2.0
"""How long a job waits until offers are heard again."""
LISTEN_SECONDS = 60.0
"""For how long offers are listened to after each job, since then the next one is given away at once."""


class Faster:
    """What was heard in one group. `own`: tokens per second here, None: not known yet. `now`: CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._offered = self._looked = self._listens_until = -REMEMBERED_SECONDS

    def heard(self, speed: float | None, own: float | None, now: float) -> None:
        """A member with this speed has a free row."""
        if speed is not None and own is not None and speed >= FASTER * own:
            self._offered = now

    def came(self, own: float | None, now: float) -> None:
        """A job of the group came: listen to offers for a while, where others are faster or that is not known."""
        if now - self._offered < REMEMBERED_SECONDS:
            self._listens_until = now + LISTEN_SECONDS
        elif own is not None and now - self._looked >= REMEMBERED_SECONDS:
            self._looked, self._listens_until = now, now + 5.0 * LOOK_SECONDS

    def listens(self, now: float) -> bool:
        """Whether to hear offers though nothing waits."""
        return now < self._listens_until

    def defers(self, waited: float, now: float) -> bool:
        """Whether a job that has waited here so long, and could start, waits for a faster member."""
        since = now - self._offered
        return since < REMEMBERED_SECONDS and waited < (RECENT_SECONDS if since < RECENT_SECONDS else LOOK_SECONDS)
