"""A connection that hears all devices, and knows when the broker has delivered what it retains of them."""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from edged.fleet.listener import subscriptions
from edged.mqtt.attempts import Backoff
from edged.mqtt.connection import Connection, Role
from edged.mqtt.session_types import Established, Publication, ReceivedMessage, SessionEnd, Subscription
from edged.mqtt.topics import fleet_check
from edged.settings.mqtt import MqttSettings

SILENT_SECONDS = 30.0
"""Time without a word of the broker after which it is given up."""


class BrokerError(Exception):
    """The broker does not tell, or does not take what is published; one line."""


@dataclass(frozen=True)
class _Refused:
    token: Hashable
    reason: str


@dataclass(frozen=True)
class _Done:
    """A message came back, or the broker acknowledged a publication."""

    token: Hashable


class Hearer(Protocol):
    """What is told of messages, by the connection's thread: Boards, or more than these."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def take(self, topic: str, payload: bytes, retained: bool, expiry: int | None = None) -> None: ...


class Gathering:
    """Connected from `__enter__` on. `boards` are told what comes, also after `gather`."""

    def __init__(
        self,
        mqtt: MqttSettings,
        boards: Hearer,
        silent_seconds: float = SILENT_SECONDS,
        more: Sequence[Subscription] = (),
    ) -> None:
        """It needs the role `exporter` or `operator` of deploy/mosquitto/provision.py, with `more` than the documents
        of devices the role `conductor`.
        """
        self._boards = boards
        self._more = more
        self._silent_seconds = silent_seconds
        self._spoke = 0.0
        self._mqtt = mqtt
        client_id = f"edged-fleet-{uuid.uuid4().hex[:12]}"
        self._check = fleet_check(mqtt.root, client_id)
        self._own = [Subscription(self._check, qos=1, purpose="messages to itself", required=True)]
        self._news: queue.SimpleQueue[Established | SessionEnd | _Refused | _Done] = queue.SimpleQueue()
        role = Role("fleet", client_id, [self._own], keep_session=False, log_warnings=False)
        self._connection = Connection(role, mqtt, self, Backoff(0.5, 10.0))

    def __enter__(self) -> Gathering:
        self._connection.start()
        self._connection.open()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._connection.stop(1.0)
        self._connection.join(3.0)

    @property
    def broker(self) -> str:
        """The address of the broker in use."""
        return self._connection.broker.address

    def gather(self) -> None:
        """Wait until everything that the broker retains of devices has come.

        A message to itself follows each SUBSCRIBE: it comes back after what that one brings (MQTT 5 §4.6). One channel
        after the other, since mosquitto drops what exceeds its max_queued_messages. Raises BrokerError.
        """
        self._connected()
        wanted = [*subscriptions(self._mqtt.root, last_heartbeats=True), *self._more]
        for count in range(1, len(wanted) + 1):
            self._connection.want([self._own, wanted[:count]])
            self._until_done(self._publish(self._check, b"check", retain=False))
            if self._connection.refused:
                raise BrokerError(f"{self.broker} refuses to subscribe {', '.join(self._connection.refused)}")

    def clear(self, topics: Sequence[str]) -> None:
        """Take the retained messages of these topics from the broker. Raises BrokerError."""
        for topic in topics:
            self._until_done(self._publish(topic, b"", retain=True))

    def keep(self, topic: str, payload: bytes) -> None:
        """Let the broker retain this message; it has come back where it was subscribed to. Raises BrokerError."""
        self._until_done(self._publish(topic, payload, retain=True))
        self._until_done(self._publish(self._check, b"check", retain=False))

    def listen(self, seconds: float) -> None:
        """Let so much time pass. Raises BrokerError as soon as the connection is lost."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                news = self._news.get(timeout=left)
                if isinstance(news, SessionEnd):
                    raise BrokerError(f"the connection to {news.broker} is lost: {news.fault.message}")

    def _publish(self, topic: str, payload: bytes, retain: bool) -> Hashable:
        publication = Publication(topic, payload, 1, retain, token=topic, correlation=None)
        if not self._connection.publish(publication):
            raise BrokerError(f"the connection to {self.broker} is lost")
        return topic

    def _connected(self) -> None:
        """Wait for the first connection; every broker is tried once."""
        failed: set[str] = set()
        while True:
            news = self._next("no answer to CONNECT")
            if isinstance(news, Established):
                if news.refused:
                    raise BrokerError(f"{self.broker} refuses to subscribe {', '.join(news.refused)}; {_ADVICE}")
                return
            if isinstance(news, SessionEnd):
                failed.add(news.broker)
                if len(failed) >= len(self._mqtt.brokers):
                    hint = f"; {news.fault.hint}" if news.fault.hint else ""
                    raise BrokerError(f"{news.broker} not connected: {news.fault.message}{hint}")

    def _until_done(self, token: Hashable) -> None:
        while True:
            news = self._next(f"nothing published to {token} comes back; {_ADVICE}; {_QUEUE}")
            if isinstance(news, _Done) and news.token == token:
                return
            if isinstance(news, _Refused):
                raise BrokerError(f"{news.reason}; {_ADVICE}")
            if isinstance(news, SessionEnd):
                raise BrokerError(f"the connection to {news.broker} is lost: {news.fault.message}")

    def _next(self, silent: str) -> Established | SessionEnd | _Refused | _Done:
        self._spoke = time.monotonic()
        while (left := self._spoke + self._silent_seconds - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._news.get(timeout=left)
        raise BrokerError(f"{self.broker}: {silent}")

    # Called by the connection's thread.

    def up(self, established: Established) -> None:
        if not established.refused:
            self._boards.connect()
        self._news.put(established)

    def down(self, end: SessionEnd) -> None:
        self._boards.disconnect()
        self._news.put(end)

    def received(self, message: ReceivedMessage) -> None:
        self._spoke = time.monotonic()
        message.receipt.session.acknowledge(message.receipt)
        if message.topic == self._check:
            self._news.put(_Done(self._check))
        else:
            self._boards.take(message.topic, message.payload, message.retained, message.expiry_seconds)

    def published(self, token: Hashable, matched: bool) -> None:
        if token != self._check:  # that one is done when it comes back
            self._news.put(_Done(token))

    def publish_refused(self, token: Hashable, reason: str, code: int | None) -> None:
        self._news.put(_Refused(token, reason))


_ADVICE = "the broker's access control list must allow it: the roles operator and exporter of provision.py do"
_QUEUE = "and it must queue as many messages as there are devices (mosquitto: max_queued_messages)"
