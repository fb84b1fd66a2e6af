"""Which rollouts a group had, as far as its document and the devices' last reports tell (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edged.fleet.fields import object_of, seconds_of, text_of
from edged.machine.clock import format_time
from edged.rollout.desired import Received


@dataclass(frozen=True)
class Past:
    """One rollout. Times are seconds since the epoch by the devices' clocks: when the first and the last of them
    entered the state that it reports."""

    sequence: int
    rollout: str
    digest: str | None
    counts: Mapping[str, int]
    first: float | None
    last: float | None

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "sequence": self.sequence,
            "rollout": self.rollout,
            "digest": self.digest,
            "counts": dict(self.counts),
            "first": None if self.first is None else format_time(self.first),
            "last": None if self.last is None else format_time(self.last),
        }

    def line(self) -> str:
        """For people."""
        told = ", ".join(f"{count} {state}" for state, count in sorted(self.counts.items())) or "no device follows it"
        when = " to ".join(format_time(moment) for moment in (self.first, self.last) if moment is not None)
        digest = "" if self.digest is None else f" ({self.digest[:12]})"
        return f"{self.sequence:>6}  {self.rollout}{digest}  {told}" + (f"  {when}" if when else "")


def history_of(newest: Received | None, reports: Mapping[str, Mapping[str, Any]], target: str) -> list[Past]:
    """The rollouts of `target`, the one with the highest sequence first."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    digests: dict[tuple[int, str], str | None] = {}
    if newest is not None:
        one = newest.desired.sequence, newest.desired.rollout
        found[one], digests[one] = [], newest.desired.digest
    for report in reports.values():
        sequence, rollout = report.get("sequence"), text_of(report.get("rollout"))
        if report.get("target") != target or not isinstance(sequence, int) or rollout is None:
            continue
        found.setdefault((sequence, rollout), []).append(report)
        model = object_of(object_of(report.get("desired")).get("model"))
        digests.setdefault((sequence, rollout), text_of(model.get("digest")))
    return [_past(*one, digests[one], found[one]) for one in sorted(found, reverse=True)]


def _past(sequence: int, rollout: str, digest: str | None, reports: list[Mapping[str, Any]]) -> Past:
    counts = Counter(str(report.get("state")) for report in reports)
    moments = [moment for report in reports if (moment := seconds_of(report.get("since"))) is not None]
    return Past(sequence, rollout, digest, counts, min(moments, default=None), max(moments, default=None))
