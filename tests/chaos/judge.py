"""The oracle: what the observer wrote down and what the sender holds, against what edged promises. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sent:
    """What the sender knows of a job that it sent."""

    answered: bool
    """Whether its result came while the sender did no more than it must."""
    results: frozenset[tuple[str, str]]
    """(device, digest) of every result that the sender saw."""
    may_expire: bool = False
    """Whether a moved clock may end it, by its deadline."""
    too_large: bool = False
    """Whether the broker does not take its result, so that it must fail."""


@dataclass
class Verdict:
    """What was seen; all lists empty and `lost` too, or a promise was broken."""

    copies: int = 0
    """Results seen beyond the first of a job on a device."""
    expired: int = 0
    """Results that say that the job's time was over."""
    lost: list[str] = field(default_factory=list)
    """Jobs that the sender sent as it must and whose result did not come, or not to the observer."""
    ran_again: list[str] = field(default_factory=list)
    """Jobs with two contents of result on one device, or that started after their result was published."""
    wrong: list[str] = field(default_factory=list)
    """Results that are no success and should be, or the other way round, or that nobody asked for."""

    @property
    def green(self) -> bool:
        return not (self.lost or self.ran_again or self.wrong)


def _right(state: str, job: Sent) -> bool:
    """Whether a job may end in this state."""
    return state == ("failed" if job.too_large else "succeeded") or (state == "expired" and job.may_expire)


def judge(sent: Mapping[str, Sent], lines: Iterable[str]) -> Verdict:
    """`lines` as the observer wrote them."""
    verdict = Verdict()
    contents: dict[tuple[str, str], set[str]] = {}
    starts: dict[tuple[str, str], set[str]] = {}
    again: dict[tuple[str, str], str] = {}
    for line in lines:
        record = json.loads(line)
        if not record:
            continue
        _, device, kind, id, what, digest = record
        place = (device, id)
        if kind == "result":
            if place in contents:
                verdict.copies += 1
            contents.setdefault(place, set()).add(digest)
            verdict.expired += what == "expired"
            if id not in sent or not _right(what, sent[id]):
                verdict.wrong.append(f"{id} on {device}: {what}")
        elif what in ("started", "retrying") and digest not in starts.setdefault(place, set()):
            starts[place].add(digest)  # a copy that the broker delivers again is no start
            if place in contents:
                again[place] = f"{id} on {device}: {what} after its result"
    heard = {id for _, id in contents}
    for id, job in sent.items():
        for device, digest in job.results:
            contents.setdefault((device, id), set()).add(digest)
        if not job.answered or id not in heard:
            verdict.lost.append(id)
    for (device, id), found in contents.items():
        if len(found) > 1:
            again[device, id] = f"{id} on {device}: {len(found)} results"
    verdict.ran_again = list(again.values())
    return verdict
