"""Takes jobs that other members of a group give, and answers whether it has the job that a member asks about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import structlog

from edged import strict_json
from edged.jobs.admission import Batch
from edged.jobs.document import Job, JobError
from edged.jobs.publisher import Notice
from edged.jobs.reading import Submission, canonical_json, check_served, read_job
from edged.jobs.records import Known as Stored
from edged.jobs.records import Moment
from edged.jobs.share_parts import ShareParts
from edged.jobs.shared import Mark
from edged.sharing.messages import Answer, Give, Repeat, Waiter
from edged.sharing.policy import Known, Place, Refusal, Taker, judge, owned

log = structlog.get_logger(__name__)

Forward = Callable[[Submission, Mark, str | None, bytes | None], None]


class JobTaker:
    """Main thread only."""

    def __init__(self, parts: ShareParts, forward: Forward) -> None:
        """`forward`: sends a repeat on to the member that has the job."""
        self._device = parts.device
        self._topics = parts.topics
        self._spool = parts.spool
        self._dispatch = parts.dispatch
        self._committer = parts.committer
        self._metrics = parts.metrics
        self._admission = parts.admission
        self._intake = parts.intake
        self._outbox = parts.outbox
        self._max_bytes = parts.max_bytes
        self._forward = forward

    def give(self, group: str, give: Give, credit_good: bool, taker: Taker) -> None:
        """Take or refuse a job, with the next commit."""
        submission = self._read(give)
        if submission is None:
            self._answer(group, give, Refusal.UNREADABLE)
        else:
            self._committer.add(lambda now: self._write(group, give, submission, credit_good, taker, now))

    def _read(self, carried: Give | Repeat) -> Submission | None:
        """The job of a message; None where this version cannot read it, or does not serve something in it."""
        document = carried.document.encode()
        places = [waiter.place for waiter in carried.waiters]
        try:
            parsed = strict_json.loads(carried.document)
            if len(document) > self._max_bytes or not isinstance(parsed, dict) or canonical_json(parsed) != document:
                raise ValueError("it is no job's canonical document, or too large")
            if any(self._topics.reply_refusal(*place) is not None for place in places):
                raise ValueError("a Response Topic in it is not allowed here")
            job: Job = read_job(parsed, carried.id)
            check_served(job, carried.id)
        except (JobError, ValueError, RecursionError) as error:
            log.warning("shared_job_unreadable", job=carried.id, giver=carried.device, reason=str(error)[:200])
            return None
        return Submission(carried.id, job, document, hashlib.sha256(document).digest())

    def _known(self, id: str, digest: bytes) -> tuple[Known, Stored | None, Mark | None]:
        """What is here under this id. Raises SpoolError."""
        if (stored := self._spool.find(id)) is not None:
            shared = self._spool.shared.of(stored.number)
            leaving = shared is not None and shared.give is not None and stored.state is None
            place = Place.LEAVING if leaving else Place.HERE
            return Known(place, stored.digest == digest, shared.came if shared is not None else None), stored, None
        if (mark := self._spool.shared.mark_of(id)) is not None:
            return Known(Place.GONE, mark.digest == digest, mark.came), None, mark
        return Known(), None, None

    def _write(
        self, group: str, give: Give, submission: Submission, credit_good: bool, taker: Taker, now: Moment
    ) -> Callable[[], None]:
        known, stored, mark = self._known(give.id, submission.digest)
        refusal = judge(give, submission.job.model, known, taker, credit_good)
        if refusal is not None:
            return lambda: self._answer(group, give, refusal)
        if owned(give.give, known) is None:
            return self._take(group, give, submission, now)
        batch = Batch()
        self._add_waiters(give.id, give.waiters, submission, stored, mark, batch)
        return lambda: self._finish(batch, group, give)

    def _take(self, group: str, give: Give, submission: Submission, now: Moment) -> Callable[[], None]:
        job, age = submission.job, give.age
        # As if it had come here first: it keeps its place among those that wait, and its times in the result.
        received = Moment(now.wall - age, now.boottime - age, now.boot_id, now.synchronised)
        queued = self._spool.add_job(
            give.id,
            submission.digest,
            submission.canonical,
            received,
            priority=job.priority,
            store=job.store,
            ttl=None if give.ttl is None else give.ttl + age,
            deadline=job.deadline_time,
        )
        self._spool.shared.add(queued.number, group, give.path, give.give)
        self._spool.take_over_attempts(queued.number, give.starts, give.crashes)
        for waiter in give.waiters:
            self._outbox.remember(queued.number, queued.id, *waiter.place)

        def taken() -> None:
            self._dispatch.put(queued)
            self._outbox.tell(queued.id, "accepted")
            self._metrics.shared_jobs.labels("taken").inc()
            log.info("job_taken", job=queued.id, giver=give.device, hops=len(give.path))
            self._answer(group, give)
            self._intake.cancel_if_early(queued)

        return taken

    def _add_waiters(
        self,
        id: str,
        waiters: list[Waiter],
        submission: Submission,
        stored: Stored | None,
        mark: Mark | None,
        batch: Batch,
    ) -> None:
        """Let further places wait for the result of a job that is or was here."""
        places: list[tuple[str | None, bytes | None]] = [waiter.place for waiter in waiters]
        for place in places or [(None, None)]:
            if stored is not None:
                self._admission.repeat(id, stored, *place, batch)
            elif mark is not None:
                batch.effects.append(lambda place=place, mark=mark: self._forward(submission, mark, *place))  # type: ignore[misc]

    def _finish(self, batch: Batch, group: str, carried: Give | Repeat) -> None:
        for effect in batch.effects:
            effect()
        self._answer(group, carried)

    def repeat(self, group: str, repeat: Repeat) -> None:
        """A sender came again to the member that gave the job away: say whether it is known here, and answer it."""
        submission = self._read(repeat)
        if submission is None:
            self._say(group, repeat.device, Answer(device=self._device, id=repeat.id, give=None, answer="unknown"))
        else:
            self._committer.add(lambda now: self._write_repeat(group, repeat, submission))

    def _write_repeat(self, group: str, repeat: Repeat, submission: Submission) -> Callable[[], None]:
        known, stored, mark = self._known(repeat.id, submission.digest)
        if known.place is Place.NOTHING or not known.same:
            answer = Answer(device=self._device, id=repeat.id, give=None, answer="unknown")
            return lambda: self._say(group, repeat.device, answer)
        batch = Batch()
        self._add_waiters(repeat.id, repeat.waiters, submission, stored, mark, batch)
        return lambda: self._finish(batch, group, repeat)

    def _answer(self, group: str, carried: Give | Repeat, refusal: Refusal | None = None) -> None:
        if isinstance(carried, Repeat):
            answer = Answer(device=self._device, id=carried.id, give=None, answer="known")
        elif refusal is None:
            answer = Answer(device=self._device, id=carried.id, give=carried.give, answer="accepted")
        else:
            answer = Answer(
                device=self._device, id=carried.id, give=carried.give, answer="refused", reason=refusal.value
            )
        self._say(group, carried.device, answer)

    def _say(self, group: str, device: str, answer: Answer) -> None:
        self._outbox.notify(Notice(self._topics.group_given(group, device), answer.payload()))
