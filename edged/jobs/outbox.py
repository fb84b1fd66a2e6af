"""Results and events on their way to the broker: a window at a time, results kept in the spool until confirmed."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol

import structlog

from edged.jobs.records import Delivery
from edged.jobs.spool import Spool
from edged.machine.clock import Clock, format_time
from edged.mqtt.topics import Topics

log = structlog.get_logger(__name__)


class Publisher(Protocol):
    """The part of the link that the outbox needs."""

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
    """A publication that is not kept on disk: an event, or the refusal of a job."""

    topic: str
    payload: bytes
    correlation: bytes | None = None


NOTICES = 10_000
"""Notices that may wait; the oldest are dropped beyond that. Senders resend until `accepted`, so no job is lost."""
_NOTICE = "notice"


class Outbox:
    """Publications that are due. Those under way when a connection dies are due again."""

    def __init__(self, spool: Spool, link: Publisher, topics: Topics, device: str, clock: Clock) -> None:
        self._spool = spool
        self._link = link
        self._topics = topics
        self._device = device
        self._clock = clock
        self._notices: deque[Notice] = deque(maxlen=NOTICES)
        self._ahead: deque[Delivery] = deque()
        self._due: deque[Delivery] = deque()
        self._under_way: dict[int, Delivery] = {}
        self._refused: list[Delivery] = []
        self._open: Counter[int] = Counter()
        """Publications of each job's result that the broker has not confirmed."""
        self._confirmed: list[Delivery] = []
        self._token = 0
        self.add(spool.due())

    def __len__(self) -> int:
        """Publications that the broker has not confirmed."""
        return len(self._ahead) + len(self._due) + len(self._under_way) + len(self._refused)

    @property
    def unsettled(self) -> bool:
        """Whether anything waits to be sent, to be confirmed, or to be committed."""
        return bool(self._notices or len(self) or self._confirmed)

    @property
    def uncommitted(self) -> bool:
        """Whether a confirmation is not on disk yet."""
        return bool(self._confirmed)

    def add(self, deliveries: Iterable[Delivery], ahead: bool = False) -> None:
        """Publish results that are on disk, in their order; `ahead` of all others that are due."""
        new = list(deliveries)
        (self._ahead if ahead else self._due).extend(new)
        self._open.update(delivery.number for delivery in new)

    def remember(self, number: int, id: str, topic: str | None, correlation: bytes | None) -> Delivery | None:
        """Write down one more place that wants a job's result, in the caller's transaction.

        None where the same place waits already and its copy has not left. A copy that has left may not have been heard
        by whoever asks now.
        """
        told = {delivery.waiter for delivery in self._under_way.values() if delivery.waiter is not None}
        waiter = self._spool.waiters.add(number, topic, correlation, told)
        return None if waiter is None else Delivery(number, id, topic, correlation, waiter)

    def tell(self, id: str, event: str, **fields: object) -> None:
        """Publish an event of a job; `fields`: members of the document beside id, event, device and time."""
        time = format_time(self._clock.wall())
        document = {"event": event, "id": id, "device": self._device, "time": time, **fields}
        self.notify(Notice(self._topics.event(id), json.dumps(document, ensure_ascii=False).encode()))

    def stream(self, id: str, number: int, text: str) -> None:
        """Publish the piece of an answer that has this number; it is dropped where there is no place for it."""
        self.pump_notices()  # `started` goes before the first piece
        piece = json.dumps({"seq": number, "text": text}, ensure_ascii=False).encode()
        self._link.publish(self._topics.stream(id), piece, qos=0)

    def notify(self, notice: Notice) -> None:
        """Publish once, at the next pump(); dropped if the connection is lost before."""
        self._notices.append(notice)

    def pump(self) -> None:
        """Hand over as much as the link takes now, notices first: `accepted` goes before the result.

        Raises SpoolError.
        """
        self.pump_notices()
        while (due := self._ahead or self._due) and not self._notices:
            delivery = due[0]
            document = self._spool.result(delivery.number)
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
        """Retry what the last connection refused: the new one may allow it."""
        self._due.extendleft(reversed(self._refused))
        self._refused.clear()

    def disconnected(self) -> None:
        """Make everything under way due again, in its order: its acknowledgements are lost with the connection."""
        self._ahead.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        self._notices.clear()

    def confirmed(self, token: Hashable) -> None:
        """The broker has that publication."""
        delivery = self._under_way.pop(token, None) if isinstance(token, int) else None
        if delivery is not None:
            self._finish(delivery)

    def refused(self, token: Hashable, reason: str) -> None:
        """The broker refuses a publication. Drop a refused reply; retry a refused result after reconnecting."""
        delivery = self._under_way.pop(token, None) if isinstance(token, int) else None
        if delivery is None:
            log.warning("notice_refused", reason=reason)
        elif delivery.topic is not None:
            log.warning("reply_refused", job=delivery.id, topic=delivery.topic, reason=reason)
            self._finish(delivery)
        else:
            log.error("result_refused", job=delivery.id, reason=reason)
            self._refused.append(delivery)

    def confirmations(self) -> tuple[list[int], list[int]]:
        """(waiters that have their answer, jobs all of whose publications are confirmed), to be committed."""
        waiters = [delivery.waiter for delivery in self._confirmed if delivery.waiter is not None]
        numbers = dict.fromkeys(delivery.number for delivery in self._confirmed)
        return waiters, [number for number in numbers if not self._open[number]]

    def committed(self) -> None:
        """Forget confirmations that have been committed."""
        for number in {delivery.number for delivery in self._confirmed if not self._open[delivery.number]}:
            del self._open[number]
        self._confirmed.clear()

    def _finish(self, delivery: Delivery) -> None:
        self._open[delivery.number] -= 1
        self._confirmed.append(delivery)
