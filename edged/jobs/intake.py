"""Takes in job and cancel messages: holds arrivals until a commit has room for them, and remembers early cancels."""

from __future__ import annotations

import json
import time
from collections import OrderedDict, deque
from typing import Protocol

import structlog

from edged.jobs.admission import Admission, Batch
from edged.jobs.dispatch import CANCELLED, CANCELLED_EARLY, Dispatch
from edged.jobs.document import Code, State, invalid_id, result_document
from edged.jobs.outbox import Outbox
from edged.jobs.publisher import Notice
from edged.jobs.records import Moment, Queued
from edged.jobs.spool import Spool
from edged.mqtt.events import Receipt, ReceivedMessage
from edged.mqtt.topics import Topics, is_id

log = structlog.get_logger(__name__)

BATCH = 256
"""Most arrivals in one commit, so that results and cancels never wait long behind a flood."""
CANCEL_MEMORY_SECONDS = 600.0
CANCEL_MEMORY = 10_000
HELD_BYTES = 16 << 20
"""Of arrivals at QoS 0 that may wait for a place; those at QoS 1 are limited by what the link reads."""
ARRIVAL_BYTES = 1024
"""Memory that an arrival takes beside its payload, about."""


class Acknowledger(Protocol):
    """The part of the link that the intake needs."""

    def acknowledge(self, receipt: Receipt) -> object:
        """Send the PUBACK for a message."""


class CancelForwarder(Protocol):
    """The part of load sharing that the intake needs."""

    def cancel(self, id: str) -> bool:
        """Forward a cancel; whether another member has the job."""


class Intake:
    """Arrivals that are not committed yet, and cancels of jobs that are not known yet."""

    def __init__(
        self,
        *,
        admission: Admission,
        dispatch: Dispatch,
        spool: Spool,
        outbox: Outbox,
        link: Acknowledger,
        topics: Topics,
        device: str,
        max_queued: int,
    ) -> None:
        """`max_queued`: jobs without a result above which further ones are left at the broker."""
        self._admission = admission
        self._dispatch = dispatch
        self._spool = spool
        self._outbox = outbox
        self._link = link
        self._topics = topics
        self._device = device
        self._max_queued = max_queued
        self._arrivals: deque[ReceivedMessage] = deque()
        self._held_back = False
        self.sharing: CancelForwarder | None = None
        """Set by the manager where load is shared."""
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self.held_bytes = 0
        """Memory that arrivals at QoS 0 take, which no broker would send again."""

    def __len__(self) -> int:
        """Arrivals that are not committed yet."""
        return len(self._arrivals)

    @property
    def room(self) -> int:
        """How many further jobs may be accepted now."""
        return max(0, self._max_queued - self._dispatch.unfinished)

    @property
    def full(self) -> bool:
        """Whether further jobs are left at the broker. In a flood each job that ends makes room for one that waited."""
        return self._held_back or not self.room

    def job_received(self, arrival: ReceivedMessage) -> None:
        """Hold a job message until the next commit."""
        if arrival.receipt.qos == 0:
            size = arrival.receipt.size + ARRIVAL_BYTES
            if self.held_bytes + size > HELD_BYTES:
                log.warning("job_dropped", reason="no place, and at QoS 0 the broker does not keep it")
                return
            self.held_bytes += size
        self._arrivals.append(arrival)

    def cancel_received(self, arrival: ReceivedMessage) -> None:
        """Obey a cancel message."""
        if arrival.retained:
            log.warning("retained_cancel_ignored", topic=arrival.topic)
        elif (id := _cancelled_id(arrival.payload)) is None:
            self._reject_cancel()
        else:
            self.cancel(id)
        self._link.acknowledge(arrival.receipt)

    def cancel(self, id: str) -> None:
        """Cancel a job, at the member that has it if it was given away."""
        given = self.sharing is not None and self.sharing.cancel(id)
        if not self._dispatch.stop(id, CANCELLED) and not given and self._spool.find(id) is None:
            self._remember_cancel(id)

    def disconnected(self) -> None:
        """Forget all arrivals: the broker sends again what was not acknowledged, except at QoS 0."""
        if lost := sum(arrival.receipt.qos == 0 for arrival in self._arrivals):
            log.warning(
                "jobs_dropped",
                jobs=lost,
                reason="they came at QoS 0 and the connection was lost before they were written to disk",
                hint="send jobs at QoS 1",
            )
        self._arrivals.clear()
        self.held_bytes = 0
        self._held_back = False

    def admit(self, now: Moment) -> Batch:
        """Write as many arrivals as one commit takes, in the caller's transaction. Raises SpoolError."""
        batch, room = Batch(), self.room
        for arrival in self._arrivals:
            if len(batch.arrivals) == BATCH or len(batch.accepted) >= room:
                break
            self._admission.admit(arrival, batch, now)
        return batch

    def committed(self, batch: Batch) -> None:
        """The batch is on disk: queue its jobs, send `accepted` and the like, then PUBACK."""
        room = self.room
        for arrival in batch.arrivals:
            self._arrivals.popleft()
            if arrival.receipt.qos == 0:
                self.held_bytes -= arrival.receipt.size + ARRIVAL_BYTES
        held_back = bool(self._arrivals) and len(batch.accepted) >= room
        if held_back and not self._held_back:
            log.warning("spool_full", jobs=self._max_queued, hint="further ones are left at the broker")
        self._held_back = held_back
        for queued in batch.accepted:
            self._dispatch.put(queued)
        for effect in batch.effects:
            effect()
        for arrival in batch.arrivals:
            self._link.acknowledge(arrival.receipt)
        for queued in batch.accepted:
            self.cancel_if_early(queued)

    def cancel_if_early(self, queued: Queued) -> None:
        """End a job whose cancel came before it."""
        if self._cancelled.pop(queued.id, 0.0) > time.monotonic():
            self._dispatch.stop(queued.id, CANCELLED_EARLY)

    def _reject_cancel(self) -> None:
        error = (Code.INVALID_JOB, 'a cancel must be {"id": "…"} with the id of a job')
        log.warning("cancel_rejected", reason=error[1])
        id = invalid_id()
        document = result_document(id, self._device, State.REJECTED, error=error)
        self._outbox.notify(Notice(self._topics.result(id), document))

    def _remember_cancel(self, id: str) -> None:
        now = time.monotonic()
        self._cancelled[id] = now + CANCEL_MEMORY_SECONDS
        self._cancelled.move_to_end(id)
        while len(self._cancelled) > CANCEL_MEMORY or next(iter(self._cancelled.values())) < now:
            self._cancelled.popitem(last=False)


def _cancelled_id(payload: bytes) -> str | None:
    """The id that a cancel names, None where its payload is not a cancel."""
    try:
        document = json.loads(payload)
        id = document["id"] if set(document) == {"id"} else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return id if isinstance(id, str) and is_id(id) else None
