"""Who takes which waiting job (pure): what a member gives to whom, and what another one takes or refuses.

Durations are in units of a job here, so nothing need be known of how long jobs take. `speed` is in tokens per second.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edged.sharing.faster import FASTER
from edged.sharing.messages import MAX_HOPS, Give, Offer


@dataclass(frozen=True)
class Waiting:
    """A job that waits here."""

    number: int
    group: str
    """The group on whose topic it came."""
    model: str | None
    """The model that it names."""
    path: tuple[str, ...]
    """Members that gave it on before."""
    ahead: int
    """Jobs that start here before it; -1: it could start now."""
    avoid: frozenset[str] = frozenset()
    """Members that have refused it for good."""


@dataclass(frozen=True)
class Here:
    """The member that gives."""

    device: str
    serves: bool
    """Whether waiting jobs start here at all: it neither drains, nor lacks its model, nor leaves jobs to others."""
    rows: int
    speed: float | None


@dataclass(frozen=True)
class Handing:
    """A job and the offer that it goes to; `speed` as in Give."""

    waiting: Waiting
    offer: Offer
    speed: float | None


def needed_speed(waiting: Waiting, here: Here) -> float | None:
    """The least speed at which a member that begins now finishes a job before this one does; None: any."""
    if not here.serves or here.speed is None:
        return None
    if waiting.ahead < 0:
        return FASTER * here.speed
    finished = 1.0 + (waiting.ahead + 1) / max(1, here.rows)  # each row takes its next job after one duration
    return here.speed / finished


def choose(waiting: Sequence[Waiting], offers: Iterable[tuple[str, Offer]], here: Here) -> list[Handing]:
    """What to give to whom. `waiting`: the oldest first. `offers`: each with its group.

    The fastest member gets the oldest job that it finishes sooner than this one; each offer and each job is used once.
    """
    chosen: list[Handing] = []
    used: set[int] = set()
    takers: set[str] = set()
    for group, offer in sorted(offers, key=lambda pair: (-(pair[1].speed or 0.0), pair[1].device)):
        if offer.device in takers or offer.device == here.device:
            continue
        for job in waiting:
            if job.number in used or job.group != group or job.model not in (None, offer.model):
                continue
            if len(job.path) >= MAX_HOPS or offer.device in job.path or offer.device in job.avoid:
                continue
            speed = needed_speed(job, here)
            if speed is None or offer.speed is None or offer.speed > speed:
                chosen.append(Handing(job, offer, speed))
                used.add(job.number)
                takers.add(offer.device)
                break
    return chosen


class Refusal(enum.Enum):
    """Why a give is refused."""

    CONFLICT = "conflict"
    """The id belongs to another job here."""
    GIVEN_ON = "given_on"
    """It was here and was given on, or is being given on."""
    CAME_BY = "came_by"
    """This member is in its path."""
    CREDIT = "credit"
    """The credit is unknown, used, or too old."""
    BUSY = "busy"
    """No row is free any more, or it drains or cannot serve."""
    MODEL = "model"
    """It names a model that is not served here."""
    SLOW = "slow"
    """It is finished sooner where it is."""
    UNREADABLE = "unreadable"
    """This version cannot read the job, or does not serve something in it."""


class Place(enum.Enum):
    """What a member has under an id."""

    NOTHING = enum.auto()
    HERE = enum.auto()
    """A job that waits, runs, or has its result."""
    LEAVING = enum.auto()
    """A job that is being given to another member."""
    GONE = enum.auto()
    """The mark of a job that another member has accepted."""


@dataclass(frozen=True)
class Known:
    """What the taker has under the id of a give."""

    place: Place = Place.NOTHING
    same: bool = True
    """Whether its content is that of the job that is given."""
    came: str | None = None
    """The give that brought it here."""


@dataclass(frozen=True)
class Taker:
    """The member that a job is given to."""

    device: str
    free: bool
    """Whether it serves, takes the group's jobs and has a free row."""
    model: str | None
    speed: float | None


def owned(give: str, known: Known) -> bool | None:
    """Whether this member is responsible for the job already: True: say so, False: refuse, None: it is free to take it.

    A member that gave a job on says so only of the very give that brought it. So marks of jobs that are gone never lead
    in a circle: each leads to a member that had the job later.
    """
    if known.place is Place.NOTHING:
        return None
    if not known.same:
        return False
    return known.place is Place.HERE or known.came == give


def judge(give: Give, model: str | None, known: Known, taker: Taker, credit_good: bool) -> Refusal | None:
    """Why a give is refused; None: it is accepted. `model`: the one that the job names."""
    owns = owned(give.give, known)
    if owns is not None:
        return None if owns else Refusal.GIVEN_ON if known.same else Refusal.CONFLICT
    if taker.device in give.path:
        return Refusal.CAME_BY
    if not credit_good:
        return Refusal.CREDIT
    if not taker.free:
        return Refusal.BUSY
    if model not in (None, taker.model):
        return Refusal.MODEL
    if give.speed is not None and taker.speed is not None and taker.speed <= give.speed:
        return Refusal.SLOW
    return None
