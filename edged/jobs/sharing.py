"""Load shared over the device's groups: offers free rows, gives waiting jobs to other members, and takes theirs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from edged.jobs.forwarding import Forwarder
from edged.jobs.giving import Giver
from edged.jobs.publisher import Publisher
from edged.jobs.reading import Submission
from edged.jobs.records import Queued
from edged.jobs.share_parts import ShareParts
from edged.jobs.shared import Mark
from edged.jobs.taking import JobTaker
from edged.mqtt.events import ShareReceived
from edged.sharing.credits import CREDIT_SECONDS, RENEW_SECONDS, Credits
from edged.sharing.faster import LOOK_SECONDS, REMEMBERED_SECONDS, Faster
from edged.sharing.messages import Answer, Give, MessageError, Offer, Repeat, read_answer, read_handed, read_offer
from edged.sharing.policy import Here, Taker, Waiting

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5.0
"""For how long a member that drains waits for offers where it knows of no others; else as long as it may drain."""
MAX_OFFERS = 1024


@dataclass(frozen=True)
class _Standing:
    """An offer that is published: what it says, its credit, and when."""

    said: tuple[str, float | None]
    credit: str
    at: float


class Sharing:
    """Main thread only; the time is CLOCK_MONOTONIC."""

    def __init__(
        self, parts: ShareParts, groups: Sequence[str], link: Publisher, speed: Callable[[], float | None]
    ) -> None:
        """`speed`: tokens per second of the last answer."""
        self._device = parts.device
        self._groups = tuple(dict.fromkeys(groups))
        self._topics = parts.topics
        self._spool = parts.spool
        self._dispatch = parts.dispatch
        self._committer = parts.committer
        self._intake = parts.intake
        self._link = link
        self._speed = speed
        self._giver = Giver(parts)
        self._forwarder = Forwarder(parts)
        self._taker = JobTaker(parts, self._forwarder.repeat)
        self._up = False
        self._sheds = False
        self._credits = Credits()
        self._standing: dict[str, _Standing | None] = {}
        """By group; None: withdrawn. A group that is not there may have an offer of an earlier time at the broker."""
        self._offers: dict[tuple[str, str], tuple[Offer, float]] = {}
        """By group and member, with the time at which it came."""
        self._candidates: list[Waiting] = []
        self._drains_since: float | None = None
        self._faster = {group: Faster() for group in self._groups}
        self._came: dict[int, tuple[str | None, float]] = {}
        """Jobs that could start: the group, None where they are not to wait, and since when."""
        self._came_now = False
        self._others_at: float | None = None
        """When another member last had a free row."""

    @property
    def backlog(self) -> bool:
        """Whether jobs wait here that others may take: then offers are worth listening to."""
        now = time.monotonic()
        return bool(self._candidates) or any(faster.listens(now) for faster in self._faster.values())

    @property
    def busy(self) -> bool:
        """Whether an answer of another member is awaited."""
        return bool(len(self._giver) or len(self._forwarder))

    @property
    def settled(self) -> bool:
        """For a member that drains: whether nothing is on its way any more, nor likely to be."""
        since = self._drains_since
        now = time.monotonic()
        alone = self._others_at is None or now - self._others_at >= REMEMBERED_SECONDS
        waited = since is not None and alone and now - since >= DRAIN_SECONDS
        return not self._up or (not self._giver and (waited or (since is not None and not self._candidates)))

    # What comes in

    def received(self, event: ShareReceived) -> None:
        """Take a message of another member. Raises SpoolError."""
        if event.group not in self._groups:
            return
        try:
            if event.kind == "offer":
                self._offered(event)
            elif event.member != self._device:
                return
            elif event.kind == "given":
                self._answered(read_answer(event.message.payload))
            else:
                self._handed(event)
        except MessageError as error:
            log.warning("share_message_refused", topic=event.message.topic[:200], reason=str(error))

    def _offered(self, event: ShareReceived) -> None:
        key = event.group, event.member
        self._offers.pop(key, None)
        if event.message.payload and event.member != self._device and len(self._offers) < MAX_OFFERS:
            offer, now = read_offer(event.message.payload, event.member), time.monotonic()
            self._offers[key] = offer, now
            self._others_at = now
            self._faster[event.group].heard(offer.speed, self._speed(), now)
            self._give()

    def _handed(self, event: ShareReceived) -> None:
        message = read_handed(event.message.payload)
        if isinstance(message, Give):
            good = self._credits.redeem(message.credit, time.monotonic())
            if good:
                self._standing[event.group] = None  # the broker's copy is worth nothing now
            self._taker.give(event.group, message, good, self._as_taker())
        elif isinstance(message, Repeat):
            self._taker.repeat(event.group, message)
        else:
            self._intake.cancel(message.id)

    def _answered(self, answer: Answer) -> None:
        if answer.give is not None:
            self._giver.answered(answer)
            self._came_now = True  # a refused job may go to another member
        else:
            self._forwarder.answered(answer)

    def _as_taker(self) -> Taker:
        return Taker(self._device, self._free, self._dispatch.model, self._speed())

    def repeat(self, submission: Submission, mark: Mark, reply: str | None, correlation: bytes | None) -> None:
        """Forward a repeat to the member that has the job."""
        self._forwarder.repeat(submission, mark, reply, correlation)

    def cancel(self, id: str) -> bool:
        """Forward a cancel; whether another member has the job. Raises SpoolError."""
        leaving = self._giver.taker_of(id)
        if leaving is not None:  # it may be there already; here it ends too
            self._forwarder.cancel(id, *leaving)
            return False
        mark = self._spool.shared.mark_of(id)
        if mark is not None:
            self._forwarder.cancel(id, mark.group, mark.taker)
        return mark is not None

    # What goes on

    def resume(self, waiting: Sequence[Queued]) -> None:
        """Go on with what was under way when the last process ended. `waiting`: jobs without a result."""
        self._giver.resume(waiting)

    def connection(self, up: bool) -> None:
        """The control connection stands, or was lost."""
        self._up = up
        self._offers.clear()
        if up:
            self._standing.clear()
            self._giver.connected()
            self._forwarder.connected()

    def defers(self, queued: Queued) -> bool:
        """Whether a job waits for another member, though it could start, or be prepared behind the rows.

        It could not be given away then, and would wait for a row here though others have one. Raises SpoolError.
        """
        if not self._up or not self._serves:
            return False
        now = time.monotonic()
        if queued.number not in self._came:
            shared = self._spool.shared.of(queued.number)
            group = shared.group if shared is not None and shared.came is None else None
            self._came[queued.number] = group, now
            if group in self._faster:
                self._faster[group].came(self._speed(), now)
                self._came_now = True
        group, since = self._came[queued.number]
        if group not in self._faster or not self._giver.may_go(queued):
            return False
        behind = self._dispatch.active >= self._dispatch.rows and now - since < LOOK_SECONDS
        return behind or self._faster[group].defers(now - since, now)

    def flush(self) -> None:
        """Give away at once what came now and waits for others. Raises SpoolError."""
        if self._came_now:
            self._came_now = False
            self._candidates = self._giver.candidates(self._serves)
            self._give()

    def tick(self, sheds: bool) -> None:
        """Once a second. `sheds`: the board's limits leave jobs of groups to others. Raises SpoolError."""
        now, self._sheds = time.monotonic(), sheds
        if self._dispatch.draining and self._drains_since is None:
            self._drains_since = now
        self._came = {number: came for number, came in self._came.items() if self._dispatch.waits(number)}
        self._candidates = self._giver.candidates(self._serves)
        if not self._up:
            return
        self._offers = {key: (offer, at) for key, (offer, at) in self._offers.items() if now - at < CREDIT_SECONDS}
        self._giver.tick()
        self._forwarder.tick()
        self._give()
        for group in self._groups:
            self._offer(group, now)

    def withdraw(self) -> None:
        """Take back the offers at once: this member drains."""
        if self._up:
            for group in self._groups:
                self._offer(group, time.monotonic())

    @property
    def _serves(self) -> bool:
        return self._dispatch.serves and not self._sheds

    @property
    def _free(self) -> bool:
        """Whether a job that came now would start at once."""
        writes = self._committer.fault is None
        return writes and self._serves and self._dispatch.unfinished < self._dispatch.rows

    def _give(self) -> None:
        if not (self._up and self._candidates and self._offers):
            return
        here = Here(self._device, self._serves, self._dispatch.rows, self._speed())
        offers = [(group, offer) for (group, _), (offer, _) in self._offers.items()]
        for handing in self._giver.give(self._candidates, offers, here):
            self._candidates.remove(handing.waiting)
            self._offers.pop((handing.waiting.group, handing.offer.device), None)

    def _offer(self, group: str, now: float) -> None:
        """Publish what is free here when it changes, and a new credit before the old one ends."""
        standing, topic = self._standing.get(group), self._topics.group_offer(group, self._device)
        model, speed = self._dispatch.model, self._speed()
        if not self._free or model is None:
            if (standing is not None or group not in self._standing) and self._link.publish(
                topic, b"", qos=0, retain=True
            ):
                self._standing[group] = None
            return
        said = model, None if speed is None else float(f"{speed:.1g}")
        if standing is None or standing.said != said or now - standing.at >= RENEW_SECONDS:
            offer = Offer(device=self._device, model=model, speed=speed, credit=uuid.uuid4().hex)
            if self._link.publish(topic, offer.payload(), qos=0, retain=True):
                self._credits.issue(offer.credit, now)
                self._standing[group] = _Standing(said, offer.credit, now)
