"""Publications on their way to the broker: a window at a time, results kept in the spool until confirmed.

After a drop, what was under way goes alone: a publication on which the broker closes the connection must not hold up
the others (poison.py).
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import structlog

from edged.faults import Fault
from edged.jobs.confirmations import Confirmations
from edged.jobs.deferred import Deferred
from edged.jobs.poison import CLOSED_TIMES, PROBE, SMALL_BYTES, Alone, PoisonFinder, Probe, Step
from edged.jobs.publisher import Notice, Publisher
from edged.jobs.records import Delivery
from edged.jobs.refused import RefusedResults
from edged.jobs.replacements import Replacements
from edged.jobs.results import can_shrink
from edged.jobs.retained import Document, RetainedDocuments
from edged.jobs.spool import Spool
from edged.machine.clock import Clock, format_time
from edged.mqtt.connection_faults import PACKET_TOO_LARGE, RATE, TRANSIENT
from edged.mqtt.events import Blame, LinkDown, LinkUp
from edged.mqtt.topics import Topics

log = structlog.get_logger(__name__)


class _Sent(NamedTuple):
    """A publication under way: of a result, of a retained document (its topic), or PROBE; `size`: of its payload."""

    what: Delivery | str | Probe
    size: int


NOTICES = 10_000
"""Notices that may wait; beyond that the oldest are dropped. Senders resend until `accepted`, so no job is lost."""
_NOTICE = "notice"
_MAY_NOT_PUBLISH = "allow the device to publish on its topics and under <root>/reply/"


class Outbox:
    """Publications that are due. Those under way when a connection dies are due again."""

    def __init__(
        self,
        spool: Spool,
        link: Publisher,
        topics: Topics,
        device: str,
        clock: Clock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`now`: CLOCK_MONOTONIC seconds."""
        self._spool = spool
        self._link = link
        self._topics = topics
        self._device = device
        self._clock = clock
        self._now = now
        self._up = False
        self._finder = PoisonFinder()
        self._retained = RetainedDocuments()
        self._notices: deque[Notice] = deque(maxlen=NOTICES)
        self._ahead: deque[Delivery] = deque()
        self._due: deque[Delivery] = deque()
        self._under_way: dict[Hashable, _Sent] = {}
        self._refused = RefusedResults()
        self._deferred: Deferred[Delivery | str] = Deferred()
        self._too_large = Replacements()
        self._confirmations = Confirmations()
        self._token = 0
        self.add(spool.due())

    def __len__(self) -> int:
        """Publications of results that the broker has not confirmed."""
        return self._confirmations.due

    @property
    def unsettled(self) -> bool:
        """Whether anything waits to be sent, to be confirmed, or to be committed."""
        return bool(self._notices or self._retained.due or self._deferred or len(self) or self._confirmations)

    @property
    def uncommitted(self) -> bool:
        """Whether a confirmation, or a result in place of another, is not on disk yet."""
        return bool(self._confirmations or self._too_large)

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Retained documents that the broker does not take as they are, and results that it refuses."""
        return (*self._retained.warnings, *self._refused.warnings)

    # What is to be published

    def add(self, deliveries: Iterable[Delivery], ahead: bool = False) -> None:
        """Publish results that are on disk, in their order; `ahead` of all others that are due."""
        new = list(deliveries)
        (self._ahead if ahead else self._due).extend(new)
        self._confirmations.expect(new)

    def remember(self, number: int, id: str, topic: str | None, correlation: bytes | None) -> Delivery | None:
        """Write down one more place that wants a job's result, in the caller's transaction.

        None where the same place waits already and its copy has not left. A copy that has left may not have been heard
        by whoever asks now.
        """
        under_way = (sent.what for sent in self._under_way.values())
        told = {what.waiter for what in under_way if isinstance(what, Delivery) and what.waiter is not None}
        waiter = self._spool.waiters.add(number, topic, correlation, told)
        return None if waiter is None else Delivery(number, id, topic, correlation, waiter)

    def tell(self, id: str, event: str, **fields: object) -> None:
        """Publish an event of a job; `fields`: members of the document beside id, event, device and time."""
        time = format_time(self._clock.wall())
        document = {"event": event, "id": id, "device": self._device, "time": time, **fields}
        self.notify(Notice(self._topics.event(id), json.dumps(document, ensure_ascii=False).encode()))

    def stream(self, id: str, number: int, text: str) -> None:
        """Publish the piece of an answer that has this number; it is dropped where there is no place for it."""
        self.pump_small()  # `started` goes before the first piece
        piece = json.dumps({"seq": number, "text": text}, ensure_ascii=False).encode()
        self._link.publish(self._topics.stream(id), piece, qos=0)

    def notify(self, notice: Notice) -> None:
        """Publish once, at the next pump(); dropped if the connection is lost before, or NOTICES come after it."""
        if len(self._notices) == NOTICES:
            log.warning("notice_dropped", topic=self._notices[0].topic, hint="its sender hears when it sends again")
        self._notices.append(notice)

    def announce(self, topic: str, document: Document, whole: bool = False) -> bool:
        """Publish a retained document at the next pump(); False, and nothing done, while the broker is away.

        An empty one removes what is retained there. `whole`: it must not be cut to what the broker takes.
        """
        if self._up:
            self._retained.put(topic, document, whole)
        return self._up

    def has_confirmed(self, topic: str) -> bool:
        """Whether the broker has confirmed the newest document on this topic since it is connected."""
        return self._retained.has_confirmed(topic)

    def forget(self, topic: str) -> None:
        """Keep nothing of a retained document that will not be published again."""
        self._retained.forget(topic)

    def announce_last(self, topic: str, document: Document) -> bool:
        """Hand over a retained document at once, though an older version may be under way: the connection ends next.

        False where the link does not take it now.
        """
        return self.announce(topic, document) and self._send_document(topic)

    # How it leaves

    def pump(self) -> None:
        """Hand over as much as the link takes now, results last: `accepted` goes before the result.

        Raises SpoolError.
        """
        now = self._now()
        self._take_deferred(now)
        self._retained.retry(now)
        while (step := self._finder.next(now)) not in (Step.FREE, Step.WAIT):
            if self._is_held(step, now) or not self._send_alone(step):
                return
        if step is Step.FREE and self.pump_small() and not self._deferred.closed(now):
            self._pump_results()

    def _is_held(self, step: Step | Alone, now: float) -> bool:
        """Whether that would be a result, and the broker said that there were too many."""
        return isinstance(step, Alone) and isinstance(step.key, Delivery) and self._deferred.closed(now)

    def _take_deferred(self, until: float) -> None:
        for what in self._deferred.take(until):
            if isinstance(what, Delivery):
                self._due.append(what)
            elif self._up:
                self._retained.again(what)

    def pump_small(self) -> bool:
        """Hand over as many documents and notices as the link takes now; whether that was all that may go."""
        if self._finder.next(self._now()) is not Step.FREE:
            return False
        for topic in self._retained_free():
            if not self._send_document(topic):
                return False
        while self._notices:
            topic, payload, correlation = self._notices[0]
            if not self._link.publish(topic, payload, qos=1, token=_NOTICE, correlation=correlation):
                return False
            self._notices.popleft()
        return True

    def _retained_free(self) -> list[str]:
        # While a version is under way the next one waits: the finder knows one publication by its topic.
        under_way = {sent.what for sent in self._under_way.values()}
        return [topic for topic in self._retained.due if topic not in self._finder and topic not in under_way]

    def _pump_results(self) -> None:
        while due := self._ahead or self._due:
            delivery = due[0]
            if delivery.number in self._too_large:
                self._too_large.add(delivery)
            elif not self._send(delivery):
                return
            due.popleft()

    def _send(self, delivery: Delivery, alone: bool = False) -> bool:
        """Hand over a publication of a result; False where the link does not take it."""
        document = self._spool.result(delivery.number)
        if document is None:  # forgotten meanwhile
            self._finder.forget(delivery)
            self._finish(delivery)
            return True
        topic = delivery.topic or self._topics.result(delivery.id)
        return self._hand_over(delivery, topic, document, delivery.correlation, alone=alone)

    def _send_alone(self, step: Step | Alone) -> bool:
        """Send what the finder asks for, or tell it that this is due no more; False where the link does not take it."""
        if not isinstance(step, Alone):
            return self._send_probe()
        key = step.key
        return self._send_suspect(key) if isinstance(key, Delivery) else self._send_document(str(key), alone=True)

    def _send_suspect(self, delivery: Delivery) -> bool:
        if delivery.number in self._too_large:
            self._finder.forget(delivery)
            self._too_large.add(delivery)
            return True
        return self._send(delivery, alone=True)

    def _send_document(self, topic: str, alone: bool = False) -> bool:
        payload = self._retained.payload(topic, self._now()) if topic in self._retained.due else None
        if payload is None:
            self._finder.forget(topic)
        elif not self._hand_over(topic, topic, payload, alone=alone, retain=True):
            return False
        self._retained.published(topic)
        return True

    def _send_probe(self) -> bool:
        topic = self._topics.status
        payload = self._retained.probe(topic)
        if payload is None:
            self._finder.no_probe()
            return True
        return self._hand_over(PROBE, topic, payload, alone=True, retain=True)

    def _hand_over(
        self,
        what: Delivery | str | Probe,
        topic: str,
        payload: bytes,
        correlation: bytes | None = None,
        *,
        alone: bool = False,
        retain: bool = False,
    ) -> bool:
        token = self._token + 1
        if not self._link.publish(
            topic, payload, qos=1, retain=retain, token=token, correlation=correlation, alone=alone
        ):
            return False
        self._token = token
        self._under_way[token] = _Sent(what, len(payload))
        self._finder.sent(what, len(topic) + len(payload) + len(correlation or b""), self._now(), alone)
        return True

    # What became of it

    def connected(self, event: LinkUp) -> None:
        """Retry what the last connection refused: the new one may allow it."""
        self._up = True
        self._finder.connected(self._now())
        if self._retained.connected(event.broker, event.maximum_packet_size):
            self._take_deferred(math.inf)
        self._due.extendleft(reversed(self._refused.take()))

    def disconnected(self, event: LinkDown) -> None:
        """Make everything under way due again: its acknowledgements are lost with the connection."""
        self._up = False
        lost = list(self._under_way.values())
        self._under_way.clear()
        self._notices.clear()
        self._retained.clear()
        now = self._now()
        if event.blame is Blame.RATE:
            self._deferred.hold(now)
        poison = self._finder.disconnected(now, event.blame, event.alone_seconds)
        for what, size in lost:
            if what == poison and not isinstance(what, Probe):
                self._convict(what, size, event)

    def _convict(self, what: Delivery | str, size: int, event: LinkDown) -> None:
        """The broker closed the connection again and again on this publication alone."""
        now, allowed = self._now(), event.blame is not Blame.TOPIC
        if isinstance(what, str):
            (self._retained.too_large(what, size, now) if allowed else self._retained.not_allowed(what, now))
            return
        reason = f"the broker closed the connection {CLOSED_TIMES} times on it alone; at last: {event.reason}"
        if not allowed or not self._replace(what, size, reason, said=event.blame is Blame.SIZE):
            self._refuse(what, reason, put_off=True)

    def confirmed(self, token: Hashable) -> None:
        """The broker has that publication."""
        sent = self._answered(token)
        if sent is None or isinstance(sent.what, Probe):
            return
        if isinstance(sent.what, str):
            self._deferred.forget(sent.what)
            self._retained.confirmed(sent.what)
        else:
            self._deferred.open()
            self._finish(sent.what, heard=True)
            for other in self._too_large.heard(sent.what.number):
                self._refuse(other, "the broker takes this result elsewhere, and not here")

    def refused(self, token: Hashable, reason: str, code: int | None = None) -> None:
        """The broker refuses a publication; `code`: MQTT 5's reason code.

        Retry a transient refusal after a pause, and a refused result after reconnecting. Drop a refused reply.
        """
        sent = self._answered(token)
        if sent is None:
            log.warning("notice_refused", reason=reason, hint=_MAY_NOT_PUBLISH)
            return
        what, size = sent
        if isinstance(what, Probe):
            return
        if code in TRANSIENT:
            pause = self._deferred.put(what, self._now(), quota=code in RATE)
            log.warning("publication_deferred", reason=reason, again_in=pause, hint="raise the broker's quota")
        elif isinstance(what, str):
            if code == PACKET_TOO_LARGE:
                self._retained.too_large(what, size, self._now())
        elif code != PACKET_TOO_LARGE or not self._replace(what, size, reason, said=True):
            self._refuse(what, reason)

    def _finish(self, delivery: Delivery, heard: bool = False) -> None:
        """It is published no more; `heard`: the broker has it."""
        self._deferred.forget(delivery)
        self._refused.finish(delivery)
        self._confirmations.finish(delivery, heard=heard)

    def _answered(self, token: Hashable) -> _Sent | None:
        """What the broker has answered."""
        sent = self._under_way.pop(token, None)
        if sent is not None:
            self._finder.answered(sent.what)
        return sent

    def _replace(self, delivery: Delivery, size: int, reason: str, said: bool) -> bool:
        """Let the next commit replace the result, for all its places; False where it stays.

        One that was heard in another place stays as it is: a result has one content. `said`: the broker said that it is
        the size. Else a small one stays too: perhaps it is the topic.
        """
        if self._confirmations.is_heard(delivery.number) or self._spool.delivered(delivery.number):
            return False
        document = self._spool.result(delivery.number)
        if size <= SMALL_BYTES and not (said and document is not None and can_shrink(document)):
            return False
        log.error("result_too_large", job=delivery.id, bytes=size, reason=reason, hint="raise the broker's limit")
        self._too_large.add(delivery)
        return True

    def _refuse(self, delivery: Delivery, reason: str, put_off: bool = False) -> None:
        """Drop a reply, and keep a result for the next connection; `put_off`: for long, as it costs the connection."""
        if delivery.topic is not None:
            log.warning("reply_refused", job=delivery.id, topic=delivery.topic, reason=reason, hint=_MAY_NOT_PUBLISH)
            self._finish(delivery)
            return
        log.error("result_refused", job=delivery.id, reason=reason, hint=_MAY_NOT_PUBLISH)
        self._refused.add(delivery, reason, put_off)
        if put_off:
            self._deferred.put_off(delivery, self._now())

    def confirmations(self) -> tuple[list[int], list[int]]:
        """(waiters that have their answer, jobs all of whose publications are confirmed), to be committed."""
        return self._confirmations.to_commit()

    def too_large(self) -> list[int]:
        """Jobs whose result is to be replaced by a small one, in the next commit."""
        under_way = {sent.what.number for sent in self._under_way.values() if isinstance(sent.what, Delivery)}
        return self._too_large.to_commit(under_way)

    def committed(self) -> None:
        """Forget confirmations that have been committed, and publish the results that have replaced others."""
        self._confirmations.committed()
        self._ahead.extend(self._too_large.committed())
