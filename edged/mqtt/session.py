"""One network connection to the broker, from CONNECT to its end, with a paho client of its own."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.faults import Fault
from edged.mqtt import connection_faults
from edged.mqtt.client import CONNECT_SECONDS, SESSION_EXPIRY_SECONDS, PahoClient, connect, make_client, read_message
from edged.mqtt.events import Receipt
from edged.mqtt.flow import WINDOW, PublishSlots, Unacknowledged
from edged.mqtt.grants import Grants, broken_promises, read_grants
from edged.mqtt.session_types import Established, Listener, Publication, SessionEnd, SessionOptions, Subscription
from edged.mqtt.subscriber import Subscriber
from edged.settings import SettingsError
from edged.tls import CredentialsError

RECHECK_CLOSE_SECONDS = 5.0
"""Time for acknowledgements under way before a disconnect that only changes the version."""
DISCONNECT_SECONDS = 2.0
"""Time limit for writing DISCONNECT and what is queued before it."""


class Session:
    """Only the thread in `run` touches paho: other threads queue commands and wake it.

    paho's own `loop_forever` thread would not do: paho then writes to the socket in whichever thread calls `publish`
    or `ack` (`Client._packet_queue`), beside the loop, and packets are torn or reordered.
    """

    def __init__(self, plan: SessionOptions, listener: Listener) -> None:
        self._plan = plan
        self._listener = listener
        self._lock = threading.Lock()
        self._commands: deque[Receipt | Publication | str] = deque()
        self._under_way: dict[int, Publication] = {}
        self._unacknowledged = Unacknowledged()
        self._slots = PublishSlots()
        self._is_ready = False
        self._ended = False
        self._close_by: float | None = None
        self._closing = False
        self._fault: Fault | None = None
        self._blamed: bool | None = None
        """Whether a DISCONNECT of the broker may be about a publication; None: there was none."""
        self._accepted_at: float | None = None
        self._recheck_at: float | None = None
        self._alone_at = 0.0
        self._session_present = False
        self._keep_alive: float = plan.mqtt.keep_alive
        self._grants = Grants()
        self._subscriber = Subscriber(plan.subscriptions, plan.protocol == "5")
        self._wanted: Sequence[Sequence[Subscription]] | None = None
        """Subscriptions that shall take the place of those in `plan`, not read yet by the loop."""
        self.loop_turned_at: float | None = None
        """Start of the present turn of the loop (CLOCK_MONOTONIC), None before and after. Any thread may read it."""
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)

    # Methods for any thread.

    @property
    def window(self) -> int:
        """How many QoS 1 publications would be taken now."""
        with self._lock:
            return self._slots.free if self._is_ready else 0

    def publish(self, publication: Publication) -> bool:
        """Take the publication; False when not connected, closing, or without a free slot."""
        with self._lock:
            open_ = self._is_ready and self._close_by is None
            if not open_ or not self._slots.take(publication.qos, publication.alone):
                return False
            self._commands.append(publication)
        self._wake()
        return True

    def acknowledge(self, receipt: Receipt) -> bool:
        """Send PUBACK for a QoS 1 message; one of QoS 0 needs none.

        False when this connection has ended: the broker sends the message again on the next one.
        """
        return receipt.qos == 0 or self._command(receipt)

    def want(self, subscriptions: Sequence[Sequence[Subscription]]) -> None:
        """Change the subscriptions to these; a publication that is handed over later leaves later."""
        with self._lock:
            self._wanted = subscriptions
        self._wake()

    def unsubscribe(self, topic_filter: str) -> None:
        """Give up a subscription that an earlier run of the device left in the broker's session."""
        self._command(topic_filter)

    def _command(self, command: Receipt | str) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._commands.append(command)
        self._wake()
        return True

    def close(self, within: float) -> None:
        """Disconnect cleanly once every publication taken was acknowledged, or after `within` seconds."""
        with self._lock:
            close_by = time.monotonic() + within
            self._close_by = close_by if self._close_by is None else min(close_by, self._close_by)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            return  # full: the loop is awake already; closed: the connection has ended

    # Methods for the connection's own thread.

    def run(self) -> SessionEnd:
        """Connect, carry messages until the end, and return how it ended."""
        try:
            client = make_client(self._plan, WINDOW)
            client.on_connect = self._on_connect
            client.on_subscribe = self._on_subscribe
            client.on_unsubscribe = self._on_unsubscribe
            client.on_disconnect = self._on_disconnect
            client.on_message = self._on_message
            client.on_publish = self._on_publish
            try:
                connect(client, self._plan)
            except (OSError, ValueError) as error:
                return SessionEnd(connection_faults.connect_failed(error, self._plan.mqtt))
            if self._close_by is None:
                self._pump(client)
            else:
                self._closing = True  # close() came during the handshake; CONNECT would throw another client out
            return self._conclude(client)
        except (CredentialsError, SettingsError) as error:
            return SessionEnd(connection_faults.credentials_unusable(error))
        finally:
            self.loop_turned_at = None
            with self._lock:
                self._ended, self._is_ready = True, False
                self._commands.clear()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _pump(self, client: PahoClient) -> None:
        """Drive paho until its socket is closed."""
        started = time.monotonic()
        give_up: float | None = None
        sock = client.socket()
        assert sock is not None
        pending: Callable[[], int] = getattr(sock, "pending", lambda: 0)  # TLS and WebSocket have it
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while client.socket() is not None:
                self._change_subscriptions(client)
                self._run_commands(client)
                self.loop_turned_at = now = time.monotonic()
                if self._accepted_at is None and now - started >= CONNECT_SECONDS:
                    self._end_with(connection_faults.UNANSWERED)
                    sock.close()
                    return
                if self._recheck_at is not None and now >= self._recheck_at:
                    self._recheck_at = None
                    self._end_with(connection_faults.RECHECK)
                    self.close(RECHECK_CLOSE_SECONDS)
                if give_up is None and self._should_disconnect(now):
                    self._closing = True
                    client.disconnect()
                    give_up = now + DISCONNECT_SECONDS
                elif give_up is not None and now >= give_up:
                    sock.close()
                    return
                full = self._unacknowledged.full and self._close_by is None
                interest = (0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.want_write() else 0)
                if sock in selector.get_map():
                    selector.unregister(sock)
                if interest:
                    selector.register(sock, interest)
                ready = selector.select(self._seconds_to_wait(now, started, give_up, pending))
                for key, events in ready:
                    if key.fileobj is self._wake_receiver:
                        self._wake_receiver.recv(4096)
                    elif events & selectors.EVENT_WRITE and client.socket() is not None:
                        client.loop_write()
                if client.socket() is None:
                    return
                if not full:
                    # On TLS, decrypted bytes may wait where select cannot see them; reading too early is only EAGAIN.
                    client.loop_read()
                client.loop_misc()

    def _seconds_to_wait(self, now: float, started: float, give_up: float | None, pending: Callable[[], int]) -> float:
        if pending() and not self._unacknowledged.full:
            return 0.0
        connect_by = started + CONNECT_SECONDS if self._accepted_at is None else None
        limits = (connect_by, self._recheck_at, self._close_by if give_up is None else give_up)
        until = min(at for at in (now + self._keep_alive / 4, *limits) if at is not None)
        return max(0.0, until - now)

    def _should_disconnect(self, now: float) -> bool:
        close_by = self._close_by
        if close_by is None:
            return False
        if self._commands:  # they were given before close(), acknowledgements among them: they leave first
            return False
        acknowledged = all(publication.qos == 0 for publication in self._under_way.values())
        return acknowledged or now >= close_by or not self._is_ready

    def _change_subscriptions(self, client: Client) -> None:
        if self._accepted_at is None:
            return
        with self._lock:
            wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._subscriber.unsubscribe(client, self._subscriber.want(wanted))
            self._subscribe_next(client)

    def _run_commands(self, client: Client) -> None:
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Receipt):
                client.ack(command.mid, command.qos)
                self._unacknowledged.remove(command)
            elif isinstance(command, str):
                self._subscriber.unsubscribe(client, [command])
            else:
                self._send(client, command)

    def _send(self, client: Client, publication: Publication) -> None:
        topic, correlation, limit = publication.topic, publication.correlation, self._grants.maximum_packet_size
        if limit is not None and (size := publication.packet_bytes(self._plan.protocol)) > limit:
            # The broker would close the connection (MQTT 5 §3.2.2.3.6), now and at every attempt.
            self._release(publication)
            reason = f"{topic}: {size} bytes, but the broker takes at most {limit}"
            self._refuse(publication, reason, connection_faults.PACKET_TOO_LARGE)
            return
        properties: Any = None
        if self._plan.protocol == "5" and correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        qos = min(publication.qos, self._grants.maximum_qos)
        retain = publication.retain and self._grants.retain
        try:
            while True:
                info = client.publish(topic, publication.payload, qos, retain, properties)
                # After 65,535 messages paho's next packet id may still be under way; it then takes nothing.
                if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                    break
        except ValueError as error:
            self._release(publication)
            self._refuse(publication, f"{topic!r} cannot be published to: {error}", None)
            return
        self._under_way[info.mid] = publication
        if publication.alone:
            self._alone_at = time.monotonic()

    def _release(self, publication: Publication) -> None:
        with self._lock:
            self._slots.release(publication.qos)

    def _refuse(self, publication: Publication, reason: str, code: int | None) -> None:
        if publication.token is not None:
            self._listener.publish_refused(publication.token, reason, code)
        if publication.token is None or (publication.retain and not connection_faults.curable(code)):
            self._listener.document_refused(publication.topic, reason)

    def _end_with(self, fault: Fault) -> None:
        """Keep the first fault: the others follow from it."""
        if self._fault is None:
            self._fault = fault

    def _conclude(self, client: PahoClient) -> SessionEnd:
        seconds = None if self._accepted_at is None else time.monotonic() - self._accepted_at
        if self._accepted_at is None and isinstance(client.socket_error, ssl.SSLError):
            return SessionEnd(connection_faults.tls_read_failed(client.socket_error, self._plan.mqtt))
        if self._closing and self._fault != connection_faults.RECHECK:
            return SessionEnd(connection_faults.CLOSED, seconds)
        alone = any(publication.alone for publication in self._under_way.values())
        alone_seconds = time.monotonic() - self._alone_at if alone else None
        closed = self._blamed if self._blamed is not None else client.closed_by_peer
        fault = self._fault or connection_faults.LOST
        if seconds is not None and fault == connection_faults.LOST:
            under_way = next(iter(self._under_way.values()), None)
            asked = [wanted.topic for wanted in self._subscriber.asked]
            fault = connection_faults.lost_during(asked, under_way.topic if under_way else None)
        return SessionEnd(fault, seconds, closed, alone_seconds, asked=self._subscriber.asked)

    # paho's callbacks, called from within loop_read, loop_write and loop_misc.

    def _on_connect(
        self,
        client: Client,
        _data: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self._end_with(connection_faults.connack_refused(code, properties, self._plan.mqtt))
            return
        self._accepted_at = time.monotonic()
        if self._plan.recheck_seconds is not None:
            self._recheck_at = self._accepted_at + self._plan.recheck_seconds
        self._session_present = flags.session_present
        self._grants = read_grants(properties)
        if self._grants.keep_alive:
            self._keep_alive = min(self._keep_alive, self._grants.keep_alive)
        assert isinstance(client, PahoClient)
        client.ping_within(self._keep_alive)
        with self._lock:
            self._slots.open(self._grants.window)
        if flags.session_present:
            self._subscriber.unsubscribe(client, self._plan.former_filters)
        self._subscribe_next(client)

    def _subscribe_next(self, client: Client) -> None:
        if self._subscriber.send_next(client, self._grants):
            return
        with self._lock:
            was_ready, self._is_ready = self._is_ready, True
        plan, subscriber = self._plan, self._subscriber
        promises = broken_promises(self._grants, plan.client_id, SESSION_EXPIRY_SECONDS if plan.keep_session else None)
        established = Established(
            session_present=self._session_present,
            protocol=plan.protocol,
            grants=self._grants,
            refused=subscriber.refused,
            refused_others=subscriber.refused_others,
            warnings=(*promises, *subscriber.warnings),
        )
        (self._listener.resubscribed if was_ready else self._listener.ready)(established)

    def _on_subscribe(
        self, client: Client, _data: object, mid: int, codes: list[ReasonCode], properties: Properties | None
    ) -> None:
        if self._subscriber.answered(mid, codes, properties):
            self._subscribe_next(client)

    def _on_unsubscribe(
        self, client: Client, _data: object, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._subscriber.unsubscribed(mid, codes)
        if self._is_ready:
            self._subscribe_next(client)

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        code: ReasonCode | None,
        properties: Properties | None,
    ) -> None:
        from_broker = flags.is_disconnect_packet_from_server
        if from_broker:
            self._blamed = code is not None and connection_faults.may_blame_publication(code)
        if code is None:
            self._end_with(connection_faults.LOST)
        elif self._accepted_at is None and not from_broker:
            self._end_with(connection_faults.closed_before_connack(code, self._plan.mqtt))
        else:
            self._end_with(connection_faults.disconnected(code, properties, from_broker))

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        received = read_message(self, message)
        self._unacknowledged.add(received.receipt)
        self._listener.received(received)

    def _on_publish(
        self, client: Client, _data: object, mid: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        assert isinstance(client, PahoClient)
        code = client.puback_code(mid, code)
        publication = self._under_way.pop(mid, None)
        if publication is None:
            return
        self._release(publication)
        if code.is_failure:
            reason = connection_faults.publication_refused(code, properties, publication.topic)
            self._refuse(publication, reason, code.value)
        elif publication.token is not None:
            self._listener.published(publication.token, code.value != connection_faults.NO_MATCHING_SUBSCRIBERS)
