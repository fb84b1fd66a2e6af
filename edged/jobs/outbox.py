"""Results on their way to the broker: a window of them under way, all of them safe in the spool until confirmed."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol

import structlog

from edged.jobs.spool import Delivery, Spool
from edged.mqtt.topics import Topics

log = structlog.get_logger(__name__)


class Publisher(Protocol):
    """What the outbox needs of the link."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        token: Hashable | None = None,
        correlation: bytes | None = None,
    ) -> bool:
        """Hand over a publication; False when it cannot be taken now."""


class Notice(NamedTuple):
    """A publication that is not kept: an event, or the refusal of a job that was not taken."""

    topic: str
    payload: bytes
    correlation: bytes | None = None


NOTICES = 10_000
"""Notices that wait for a place; beyond, the oldest go. Their loss harms nobody: senders resend until `accepted`."""
_NOTICE = "notice"


class Outbox:
    """Publications that are due, results in their order, but for those that go ahead. What is under way when a
    connection dies is due again."""

    def __init__(self, spool: Spool, link: Publisher, topics: Topics) -> None:
        self._spool = spool
        self._link = link
        self._topics = topics
        self._notices: deque[Notice] = deque(maxlen=NOTICES)
        self._ahead: deque[Delivery] = deque()
        self._due: deque[Delivery] = deque()
        self._under_way: dict[int, Delivery] = {}
        self._refused: list[Delivery] = []
        self._open: Counter[int] = Counter()
        self._done: list[Delivery] = []
        self._token = 0
        self.add(spool.due())

    def __len__(self) -> int:
        """Publications that the broker has not confirmed."""
        return len(self._ahead) + len(self._due) + len(self._under_way) + len(self._refused)

    def add(self, deliveries: Iterable[Delivery], ahead: bool = False) -> None:
        """More publications, of results that are on disk; `ahead` of all that are due."""
        new = list(deliveries)
        (self._ahead if ahead else self._due).extend(new)
        self._open.update(delivery.seq for delivery in new)

    def notify(self, notice: Notice) -> None:
        """Publish once, at the next pump(); dropped if the connection goes before."""
        self._notices.append(notice)

    def pump(self) -> None:
        """Hand over as much as the link takes now, notices first: `accepted` goes before the result.

        Raises SpoolError.
        """
        self.pump_notices()
        while (due := self._ahead or self._due) and not self._notices:
            delivery = due[0]
            document = self._spool.result(delivery.seq)
            if document is None:  # forgotten meanwhile
                due.popleft()
                self._finish(delivery)
                continue
            self._token += 1
            topic = delivery.topic or self._topics.result(delivery.id)
            if not self._link.publish(topic, document, qos=1, token=self._token, correlation=delivery.correlation):
                return
            due.popleft()
            self._under_way[self._token] = delivery

    def pump_notices(self) -> None:
        """Hand over as many notices as the link takes now."""
        while self._notices:
            topic, payload, correlation = self._notices[0]
            if not self._link.publish(topic, payload, qos=1, token=_NOTICE, correlation=correlation):
                return
            self._notices.popleft()

    def connected(self) -> None:
        """A new connection: what the last one refused may be allowed on this one."""
        self._due.extendleft(reversed(self._refused))
        self._refused.clear()

    def disconnected(self) -> None:
        """The connection is gone with its acknowledgements: all under way is due again, in its order."""
        self._ahead.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        self._notices.clear()

    def confirmed(self, token: Hashable) -> None:
        """The broker has that publication."""
        delivery = self._under_way.pop(token, None) if isinstance(token, int) else None
        if delivery is not None:
            self._finish(delivery)

    def refused(self, token: Hashable, reason: str) -> None:
        """The broker will not have it. A waiter's own topic ends with that; the result topic waits for better times."""
        delivery = self._under_way.pop(token, None) if isinstance(token, int) else None
        if delivery is None:
            log.warning("notice_refused", reason=reason)
            return
        if delivery.topic is not None:
            log.warning("reply_refused", job=delivery.id, topic=delivery.topic, reason=reason)
            self._finish(delivery)
        else:
            log.error("result_refused", job=delivery.id, reason=reason)
            self._refused.append(delivery)

    def done(self) -> tuple[list[int], list[int]]:
        """(waiters answered, jobs whose every publication is confirmed), to be written down."""
        waiters = [delivery.waiter for delivery in self._done if delivery.waiter is not None]
        return waiters, [seq for seq in dict.fromkeys(d.seq for d in self._done) if not self._open[seq]]

    def written_down(self) -> None:
        """What done() told is on disk."""
        for seq in {d.seq for d in self._done if not self._open[d.seq]}:
            del self._open[seq]
        self._done.clear()

    @property
    def told(self) -> set[int]:
        """Waiters whose copy has left, though it is not confirmed: whoever asks now may not have heard it."""
        return {d.waiter for d in self._under_way.values() if d.waiter is not None}

    @property
    def unsettled(self) -> bool:
        """Whether anything waits for a place, for the broker, or to be written down."""
        return bool(self._notices or len(self) or self._done)

    @property
    def unwritten(self) -> int:
        """Confirmations that are not on disk yet."""
        return len(self._done)

    def _finish(self, delivery: Delivery) -> None:
        self._open[delivery.seq] -= 1
        self._done.append(delivery)
