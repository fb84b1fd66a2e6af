"""Which desired document the device follows, out of its own and those of its groups (pure).

The order is by sequence and never by arrival, so that a broker that delivers late, twice or out of an old backup, or
forgets a document, changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from edged.faults import Fault
from edged.rollout.desired import Received, RefusedError

DEVICE = "device"
"""The target of a document for this device alone."""
MOST_ABORTED = 256
"""Ids of aborted rollouts that are remembered; older ones have sequences that are refused by then."""


@dataclass(frozen=True)
class Known:
    """The newest document of one target. `percent`: the highest that was told for it."""

    received: Received
    percent: float
    present: bool = True
    """False once it was emptied at the broker."""

    @property
    def content(self) -> str:
        """Identity of the release: 64 hex digits."""
        return hashlib.sha256(self.received.release).hexdigest()

    @property
    def sequence(self) -> int:
        return self.received.desired.sequence


@dataclass(frozen=True)
class Documents:
    """What is known of all targets, and which rollouts were aborted, the latest last."""

    known: Mapping[str, Known] = field(default_factory=dict)
    aborted: tuple[str, ...] = ()

    def take(self, received: Received) -> Documents:
        """Take a document that was checked. Raises RefusedError for one that is older, or another of the same age."""
        desired, target = received.desired, received.target
        new, old = Known(received, desired.percent), self.known.get(target)
        if old is not None and new.sequence < old.sequence:
            raise RefusedError(
                Fault(
                    "desired_replayed",
                    f"sequence {new.sequence} is older than {old.sequence}, which the device knows",
                    "to go back to an earlier model, publish it with a higher sequence",
                )
            )
        if old is not None and new.sequence == old.sequence:
            if new.content != old.content:
                raise RefusedError(
                    Fault(
                        "desired_sequence_reused",
                        f"sequence {new.sequence} had another content: only percent, abort and pauses may change",
                        "give the changed document a higher sequence",
                    )
                )
            if old.received.desired.abort and not desired.abort:
                new = Known(old.received, new.percent)  # what ended it is what is reported
            new = replace(new, percent=max(new.percent, old.percent))
        elif desired.rollout in self.aborted and not desired.abort:
            raise RefusedError(
                Fault("desired_aborted", f"the rollout {desired.rollout} was aborted", "give the new one another id")
            )
        aborted = self.aborted
        if desired.abort and desired.rollout not in aborted:
            aborted = (*aborted, desired.rollout)[-MOST_ABORTED:]
        return Documents({**self.known, target: new}, aborted)

    def withdraw(self, target: str) -> Documents:
        """A target's document was emptied at the broker."""
        if target not in self.known:
            return self
        return replace(self, known={**self.known, target: replace(self.known[target], present=False)})

    def followed(self, groups: Collection[str]) -> Known | None:
        """The document to follow by a device of these groups.

        Its own, as long as it is there; else the one of the highest sequence. So a group's document is followed only
        with a higher sequence than an own one that was emptied: emptying changes nothing.
        """
        own = self.known.get(DEVICE)
        if own is not None and own.present:
            return own
        of_groups = [self.known[target] for name in groups if (target := f"group/{name}") in self.known]
        candidates = [*([own] if own is not None else []), *of_groups]
        return max(candidates, key=lambda known: (known.sequence, known is own, known.received.target), default=None)
