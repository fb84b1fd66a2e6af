"""Repeats and cancels of jobs that were given away: forwards them to the member that has the job.

The repeat carries the job's document. So where that member is silent or does not know the job, it is taken anew here,
though nothing but its mark was kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from edged.jobs.publisher import Notice
from edged.jobs.reading import Submission
from edged.jobs.records import Moment
from edged.jobs.share_parts import ShareParts
from edged.jobs.shared import Mark
from edged.sharing.messages import GIVE_BYTES, MAX_WAITERS, Answer, Cancel, Repeat, Waiter

log = structlog.get_logger(__name__)

RESEND_SECONDS = 5.0
SILENT_SECONDS = 15.0
"""Without an answer for so long, while the broker is connected, a member counts as offline."""
_MOST = 64
"""Repeats that wait for an answer; senders come again with what is more."""


@dataclass
class _Asked:
    """A repeat that the member with the job has not answered."""

    submission: Submission
    mark: Mark
    since: float
    """When the broker was connected and it could be asked first, in CLOCK_MONOTONIC seconds."""
    sent_at: float | None = None
    waiters: list[Waiter] = field(default_factory=list)


class Forwarder:
    """Main thread only."""

    def __init__(self, parts: ShareParts) -> None:
        self._device = parts.device
        self._topics = parts.topics
        self._spool = parts.spool
        self._dispatch = parts.dispatch
        self._committer = parts.committer
        self._metrics = parts.metrics
        self._intake = parts.intake
        self._outbox = parts.outbox
        self._asked: dict[str, _Asked] = {}

    def __len__(self) -> int:
        """Repeats that wait for an answer."""
        return len(self._asked)

    def cancel(self, id: str, group: str, taker: str) -> None:
        """Cancel a job at the member that has it."""
        self._asked.pop(id, None)
        self._metrics.shared_jobs.labels("forwarded").inc()
        self._give(group, taker, Cancel(device=self._device, id=id).payload())

    def repeat(self, submission: Submission, mark: Mark, reply: str | None, correlation: bytes | None) -> None:
        """Ask the member that has the job to answer a repeat of it."""
        asked = self._asked.get(submission.id)
        if asked is None:
            if len(self._asked) >= _MOST:
                log.warning("repeat_not_forwarded", job=submission.id, most=_MOST)
                return
            asked = self._asked[submission.id] = _Asked(submission, mark, time.monotonic())
        waiter = Waiter.of(reply, correlation) if reply is not None else None
        if waiter is not None and waiter not in asked.waiters and len(asked.waiters) < MAX_WAITERS:
            asked.waiters.append(waiter)
        self._metrics.shared_jobs.labels("forwarded").inc()
        self._send(asked)

    def _send(self, asked: _Asked) -> None:
        asked.sent_at = time.monotonic()
        document = asked.submission.canonical.decode()
        message = Repeat(device=self._device, id=asked.submission.id, document=document, waiters=asked.waiters)
        payload = message.payload()
        if len(payload) <= GIVE_BYTES:  # else it would be refused: as if the member were silent
            self._give(asked.mark.group, asked.mark.taker, payload)

    def _give(self, group: str, taker: str, payload: bytes) -> None:
        self._outbox.notify(Notice(self._topics.group_give(group, taker), payload))

    def answered(self, answer: Answer) -> None:
        """The member knows the job, or does not."""
        asked = self._asked.get(answer.id)
        if asked is None or asked.mark.taker != answer.device:
            return
        del self._asked[answer.id]
        if answer.answer == "unknown":
            self._take_anew(asked, "it does not know the job")

    def connected(self) -> None:
        """The broker is there again: it may have what was sent, or not."""
        for asked in self._asked.values():
            asked.since, asked.sent_at = time.monotonic(), None

    def tick(self) -> None:
        """While the broker is connected: ask again, and take jobs anew where the member is silent."""
        now = time.monotonic()
        for id, asked in list(self._asked.items()):
            if now - asked.since >= SILENT_SECONDS:
                del self._asked[id]
                self._take_anew(asked, "it does not answer")
            elif asked.sent_at is None or now - asked.sent_at >= RESEND_SECONDS:
                self._send(asked)

    def _take_anew(self, asked: _Asked, why: str) -> None:
        self._committer.add(lambda now: self._write(asked, why, now))

    def _write(self, asked: _Asked, why: str, now: Moment) -> Callable[[], None]:
        submission, mark = asked.submission, asked.mark
        if self._spool.find(submission.id) is not None or self._spool.shared.mark_of(submission.id) != mark:
            return lambda: None  # another repeat was faster
        job = submission.job
        queued = self._spool.add_job(
            submission.id,
            submission.digest,
            submission.canonical,
            now,
            priority=job.priority,
            store=job.store,
            ttl=job.ttl,
            deadline=job.deadline_time,
        )
        self._spool.shared.unmark(submission.id)
        self._spool.shared.add(queued.number, mark.group)
        for waiter in asked.waiters:
            self._outbox.remember(queued.number, queued.id, *waiter.place)

        def taken() -> None:
            self._dispatch.put(queued)
            self._outbox.tell(queued.id, "accepted")
            log.warning("job_taken_anew", job=queued.id, taker=mark.taker, reason=why)
            self._intake.cancel_if_early(queued)

        return taken
