"""Finds the publication on which the broker closes the connection. Pure: times are arguments, in seconds.

A broker that takes packets up to a size, and announces none, closes the connection on a larger one, at each attempt.
What was under way at a drop is suspect and goes again alone, the smallest first. One that the broker closes on goes
again later, and the others leave meanwhile. It is convicted when the broker has closed on it three times in a row.

A line that breaks at random looks like that now and then. So a close counts only if a small publication was
acknowledged before on the same connection, and if the connection had stood, without a drop, `STOOD_RATIO` times as long
as the publication was under way. At whatever rate a line breaks, that happens by chance with a probability of at most
1 / (e * (STOOD_RATIO + 1)) = 0.7 %, and three times in a row with 4e-7. Any other end of the attempt counts anew.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Hashable
from dataclasses import dataclass

from edged.mqtt.events import Blame

CLOSED_TIMES = 3
"""Closes in a row, each while the publication alone was under way, that convict it."""
STOOD_RATIO = 50.0
SHORTEST_STAND, LONGEST_STAND = 1.0, 3600.0
"""Seconds for which a connection must have stood before a publication that it was closed on goes again."""
UNANSWERED_RATIO = 5.0
"""A publication that the broker leaves unanswered goes again after so many times as long as was waited for it."""
_SAYS_SO = frozenset({Blame.SIZE, Blame.TOPIC})
SMALL_BYTES = 1024
"""A publication of so many bytes at most is small."""


class Step(enum.Enum):
    """What may be sent now where no single publication is to go alone."""

    FREE = enum.auto()
    """Everything that is not suspect, beside each other."""
    WAIT = enum.auto()
    """Nothing: what is under way must be answered first."""
    PROBE = enum.auto()
    """A small publication, alone: whether the broker takes anything."""


@dataclass(frozen=True)
class Alone:
    """This publication may be sent now, alone."""

    key: Hashable


@dataclass
class _Suspect:
    size: int
    tried: bool = False
    topic: bool = False
    """Whether the broker said at the last attempt that it does not allow the topic."""
    closed: int = 0
    """Closes in a row that count."""
    longest: float = 0.0
    """How long it was under way before a close, about at most."""
    stand: float = 0.0
    """Seconds for which the connection must have stood before it goes again."""


@dataclass(frozen=True)
class _UnderWay:
    size: int
    at: float
    alone: bool


class Probe(enum.Enum):
    """The key of the small publication that next() asks for with Step.PROBE."""

    PROBE = enum.auto()


PROBE = Probe.PROBE


class PoisonFinder:
    """Keys are the caller's names for publications; they stay the same over connections."""

    def __init__(self, draw: random.Random | None = None) -> None:
        self._draw = draw or random.Random()
        self._suspects: dict[Hashable, _Suspect] = {}
        self._under_way: dict[Hashable, _UnderWay] = {}
        self._up_at: float | None = None
        self._smallest_taken: int | None = None
        self._probe_lost = False
        """The last connection ended on the probe: the next one goes without, so that others are not held up."""

    def __contains__(self, key: Hashable) -> bool:
        """Whether a publication is suspect: it goes only where next() says so."""
        return key in self._suspects

    def connected(self, now: float) -> None:
        """A connection stands."""
        self._up_at = now
        self._under_way.clear()
        self._smallest_taken = None

    def next(self, now: float) -> Step | Alone:
        """What may be sent now."""
        if self._up_at is None:
            return Step.WAIT
        stood = now - self._up_at
        key = min(
            (key for key, suspect in self._suspects.items() if not suspect.tried or stood >= suspect.stand),
            key=lambda key: (self._suspects[key].tried, self._suspects[key].size),
            default=None,
        )
        if any(sent.alone for sent in self._under_way.values()):
            return Step.WAIT
        if key is None:
            return Step.FREE
        if self._under_way:
            return Step.WAIT
        if not self._probe_lost and (self._smallest_taken is None or self._smallest_taken > SMALL_BYTES):
            return Step.PROBE
        return Alone(key)

    def sent(self, key: Hashable, size: int, now: float, alone: bool = False) -> None:
        """A publication of `size` bytes was handed to the connection."""
        self._under_way[key] = _UnderWay(size, now, alone)

    def no_probe(self) -> None:
        """There is no small publication to send on this connection."""
        self._probe_lost = True

    def answered(self, key: Hashable) -> None:
        """The broker has acknowledged or refused a publication: it did not close the connection on it."""
        self._suspects.pop(key, None)
        sent = self._under_way.pop(key, None)
        if sent is None:
            return
        if self._smallest_taken is None or sent.size < self._smallest_taken:
            self._smallest_taken = sent.size
        for suspect in self._suspects.values():
            if suspect.size <= sent.size and not suspect.topic:  # a larger one is taken: it is not the size
                suspect.closed = 0

    def forget(self, key: Hashable) -> None:
        """A publication is due no more."""
        self._suspects.pop(key, None)
        self._under_way.pop(key, None)

    def disconnected(self, now: float, blame: Blame, alone_seconds: float | None = None) -> Hashable | None:
        """The connection has ended. Returns the publication that this convicts: it is suspect no more.

        `alone_seconds`: for how long a publication that was sent alone was under way, if the connection measured it.
        """
        if self._up_at is None:
            return None
        up_at, self._up_at = self._up_at, None
        under_way, self._under_way = self._under_way, {}
        alone = next((key for key, sent in under_way.items() if sent.alone), None)
        self._probe_lost = alone is PROBE
        if alone is None or alone is PROBE:
            for suspect in self._suspects.values():
                if suspect.tried and now - up_at < suspect.stand:
                    # This line may never stand so long: then it goes all the same, without counting.
                    suspect.stand = max(SHORTEST_STAND, suspect.stand / 2)
        if alone is None:
            for key, sent in under_way.items():
                self._suspects.setdefault(key, _Suspect(sent.size)).size = sent.size
            return None
        if alone is PROBE:
            return None
        sent = under_way[alone]
        suspect = self._suspects.setdefault(alone, _Suspect(sent.size))
        suspect.size = sent.size
        smallest = self._smallest_taken
        # A topic that is not allowed is a matter of no size.
        small_taken = smallest is not None and (smallest < sent.size or blame is Blame.TOPIC)
        took = now - sent.at if alone_seconds is None else alone_seconds
        self._judge(suspect, took, sent.at - up_at, blame, small_taken)
        if suspect.closed < CLOSED_TIMES:
            return None
        del self._suspects[alone]
        return alone

    def _judge(self, suspect: _Suspect, took: float, stood: float, blame: Blame, small_taken: bool) -> None:
        """Account for an attempt that ended with the connection, `took` seconds after it began."""
        suspect.tried, suspect.topic = True, blame is Blame.TOPIC
        if blame is Blame.UNANSWERED:  # each attempt holds up the others for `took` seconds
            suspect.closed = 0
            stand = max(suspect.stand * 2, took * UNANSWERED_RATIO)
        elif not blame.counts or not small_taken:
            suspect.closed = 0
            stand = suspect.stand * 2
        elif blame in _SAYS_SO:  # no chance is possible
            suspect.closed += 1
            stand = 0.0
        else:
            suspect.longest = max(took, suspect.longest / 2)
            suspect.closed = suspect.closed + 1 if took * STOOD_RATIO <= stood else 0
            # More than the ratio needs: the next attempt may take longer. At random: brokers have periods too.
            stand = STOOD_RATIO * suspect.longest * self._draw.uniform(1.2, 2.0)
        suspect.stand = min(LONGEST_STAND, max(SHORTEST_STAND * self._draw.uniform(1.0, 2.0), stand))
