"""Gives waiting jobs to other members of their group, and sends those who come again to the member that has the job.

A job stays on disk here until the taker's `accepted`, and does not start meanwhile. What is under way is on disk before
it is sent, so a start goes on where a kill stopped: it asks the taker with the same give, which that recognises.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from edged.jobs.publisher import Notice
from edged.jobs.records import Moment, Queued
from edged.jobs.share_parts import ShareParts
from edged.jobs.shared import Mark, Shared
from edged.sharing.credits import CREDIT_SECONDS
from edged.sharing.messages import GIVE_BYTES, MAX_HOPS, Answer, Give, Offer, Waiter
from edged.sharing.policy import Handing, Here, Refusal, Waiting, choose

log = structlog.get_logger(__name__)

RESEND_SECONDS = 5.0
GIVE_UP_SECONDS = CREDIT_SECONDS + 10.0
"""Of silence, while the broker is connected. By then the credit is worth nothing, wherever the message is."""
LOOKED_AT = 32
"""Waiting jobs that are looked at in one turn."""
_FOR_GOOD = {refusal.value for refusal in (Refusal.CONFLICT, Refusal.GIVEN_ON, Refusal.CAME_BY, Refusal.UNREADABLE)}


@dataclass(frozen=True)
class _Fixed:
    """What never changes of a job of a group."""

    group: str
    model: str | None
    path: tuple[str, ...]


@dataclass
class _Leaving:
    """A job on its way to another member."""

    queued: Queued
    shared: Shared
    give: str
    taker: str
    credit: str
    speed: float | None
    since: float
    """When the broker was connected and the give could be sent first, in CLOCK_MONOTONIC seconds."""
    written: bool = False
    """The disk knows of it: only now may it be sent."""
    sent_at: float | None = None
    waiters: list[Waiter] = field(default_factory=list)
    """Those that the last message had."""


class Giver:
    """Main thread only."""

    def __init__(self, parts: ShareParts) -> None:
        self._device = parts.device
        self._topics = parts.topics
        self._spool = parts.spool
        self._dispatch = parts.dispatch
        self._committer = parts.committer
        self._metrics = parts.metrics
        self._times = parts.times
        self._notify = parts.outbox.notify
        self._leaving: dict[int, _Leaving] = {}
        self._avoid: dict[int, frozenset[str]] = {}
        self._too_large: set[int] = set()
        self._fixed: dict[int, _Fixed | None] = {}
        """Of the jobs that were looked at last, so that their documents are not read each second."""

    def __len__(self) -> int:
        """Jobs that are on their way."""
        return len(self._leaving)

    def resume(self, waiting: Iterable[Queued]) -> None:
        """Hold the jobs that were on their way when the last process ended. `waiting`: all that have no result."""
        queued = {job.number: job for job in waiting}
        for shared in self._spool.shared.leaving():
            if shared.number in queued and shared.give is not None and shared.taker is not None:
                self._dispatch.hold(queued[shared.number])
                # Its credit is not known any more: the taker answers `accepted` only if it has the job.
                self._leaving[shared.number] = _Leaving(
                    queued[shared.number], shared, shared.give, shared.taker, "resumed", None, time.monotonic(), True
                )

    # What is given

    def candidates(self, serves: bool) -> list[Waiting]:
        """The oldest jobs that may be given away and do not start now, or wait for others. Raises SpoolError."""
        free = max(0, self._dispatch.rows - self._dispatch.active) if serves else 0
        looked_at = [
            (place, queued.number)
            for place, queued in enumerate(self._dispatch.upcoming(free + LOOKED_AT))
            if self.may_go(queued) and (place >= free or self._dispatch.defers(queued))
        ]
        known = self._fixed
        self._fixed = {n: known[n] if n in known else self._read(n) for _, n in looked_at}
        return [
            Waiting(n, fixed.group, fixed.model, fixed.path, max(-1, place - free), self._avoid.get(n, frozenset()))
            for place, n in looked_at
            if (fixed := self._fixed[n]) is not None
        ]

    def may_go(self, queued: Queued) -> bool:
        """Whether nothing of the job itself keeps it here."""
        return not queued.suspect and queued.number not in self._too_large

    def _read(self, number: int) -> _Fixed | None:
        """What never changes of a job; None where it is not to be given away. Raises SpoolError."""
        shared = self._spool.shared.of(number)
        document = self._spool.document(number) if shared is not None and len(shared.path) < MAX_HOPS else None
        if shared is None or document is None:
            return None
        return _Fixed(shared.group, json.loads(document).get("model"), shared.path)

    def give(self, candidates: list[Waiting], offers: Iterable[tuple[str, Offer]], here: Here) -> list[Handing]:
        """Begin to give jobs away; returns what goes where. Raises SpoolError."""
        queued = {job.number: job for job in self._dispatch.upcoming(here.rows + LOOKED_AT)}
        begun = []
        for handing in choose(candidates, offers, here):
            number = handing.waiting.number
            shared = self._spool.shared.of(number)
            if shared is not None and number in queued:
                self._begin(queued[number], shared, handing)
                begun.append(handing)
        return begun

    def _begin(self, queued: Queued, shared: Shared, handing: Handing) -> None:
        give, offer = uuid.uuid4().hex, handing.offer
        one = _Leaving(queued, shared, give, offer.device, offer.credit, handing.speed, time.monotonic())
        self._leaving[queued.number] = one
        self._dispatch.hold(queued)

        def write(now: Moment) -> Callable[[], None]:
            self._spool.shared.leave(queued.number, give, offer.device)
            message = self._message(one)
            return lambda: self._send(one, message)

        self._committer.add(write)

    def _message(self, one: _Leaving) -> bytes | None:
        """The give as it is now; None where the job has ended. Raises SpoolError."""
        queued, document = one.queued, self._spool.document(one.queued.number)
        if document is None or not self._dispatch.waits(queued.number):
            return None
        one.waiters = self._waiters(queued.number)
        age = max(0.0, self._times.age(queued))
        give = Give(
            device=self._device,
            give=one.give,
            id=queued.id,
            document=document.decode(),
            age=age,
            ttl=None if queued.ttl is None else max(0.0, queued.ttl - age),
            waiters=one.waiters,
            starts=queued.starts,
            crashes=queued.crashes,
            path=[*one.shared.path, self._device],
            credit=one.credit,
            speed=one.speed,
        )
        return give.payload()

    def _send(self, one: _Leaving, message: bytes | None) -> None:
        one.written, one.sent_at = True, time.monotonic()
        if message is None:
            return
        if len(message) > GIVE_BYTES:
            self._too_large.add(one.queued.number)
            self._keep(one)
        else:
            self._notify(Notice(self._topics.group_give(one.shared.group, one.taker), message))

    def _waiters(self, number: int) -> list[Waiter]:
        return [Waiter.of(topic, data) for topic, data in self._spool.places(number) if topic is not None]

    # What became of it

    def answered(self, answer: Answer) -> None:
        """The taker has the job, or refuses it."""
        one = next((one for one in self._leaving.values() if one.give == answer.give), None)
        if one is None or one.taker != answer.device or answer.id != one.queued.id:
            return  # late, or of another time
        if answer.answer == "accepted":
            self._committer.add(lambda now: self._write_given(one, now))
            return
        self._metrics.shared_jobs.labels("refused").inc()
        log.info("job_give_refused", job=one.queued.id, taker=one.taker, reason=answer.reason)
        if answer.reason in _FOR_GOOD:
            self._avoid[one.queued.number] = self._avoid.get(one.queued.number, frozenset()) | {one.taker}
        self._keep(one)

    def _write_given(self, one: _Leaving, now: Moment) -> Callable[[], None]:
        """Leave nothing of the job but its mark; once more to the taker if another place waits for the result now."""
        known = self._spool.find(one.queued.id)
        if self._leaving.get(one.queued.number) is not one or known is None or known.state is not None:
            return lambda: None  # answered twice, or it has ended here meanwhile
        if self._waiters(known.number) != one.waiters:
            message = self._message(one)
            return lambda: self._send(one, message)
        self._spool.remove(known.number)
        mark = Mark(known.digest, one.shared.group, one.taker, one.shared.came)
        self._spool.shared.mark(one.queued.id, mark, now)
        return lambda: self._given(one)

    def _given(self, one: _Leaving) -> None:
        self._forget(one.queued.number)
        self._dispatch.forget(one.queued)
        self._committer.erased = True
        self._metrics.shared_jobs.labels("given").inc()
        log.info("job_given", job=one.queued.id, taker=one.taker)

    def _keep(self, one: _Leaving) -> None:
        """The job stays here."""

        def write(now: Moment) -> Callable[[], None]:
            self._spool.shared.leave(one.queued.number, None, None)
            return kept

        def kept() -> None:
            if self._leaving.pop(one.queued.number, None) is not None:
                self._dispatch.release(one.queued)

        self._committer.add(write)

    def _forget(self, number: int) -> None:
        self._leaving.pop(number, None)
        self._avoid.pop(number, None)
        self._too_large.discard(number)

    def connected(self) -> None:
        """The broker is there again: it may have what was sent, or not."""
        for one in self._leaving.values():
            one.since, one.sent_at = time.monotonic(), None

    def tick(self) -> None:
        """While the broker is connected: send again, and give up on silent members. Raises SpoolError."""
        now = time.monotonic()
        for one in list(self._leaving.values()):
            if not self._dispatch.waits(one.queued.number):
                self._forget(one.queued.number)  # it has ended here
            elif one.written and now - one.since >= GIVE_UP_SECONDS:
                one.written = False  # no further message
                log.warning("job_give_unanswered", job=one.queued.id, taker=one.taker, then="it stays here")
                self._metrics.shared_jobs.labels("refused").inc()
                self._keep(one)
            elif one.written and (one.sent_at is None or now - one.sent_at >= RESEND_SECONDS):
                self._send(one, self._message(one))
        if len(self._avoid) + len(self._too_large) > 2 * LOOKED_AT:
            self._avoid = {number: avoid for number, avoid in self._avoid.items() if self._dispatch.waits(number)}
            self._too_large = {number for number in self._too_large if self._dispatch.waits(number)}

    def taker_of(self, id: str) -> tuple[str, str] | None:
        """Group and taker of a job that is on its way, and may be there already."""
        one = next((one for one in self._leaving.values() if one.queued.id == id), None)
        return None if one is None else (one.shared.group, one.taker)
