"""One network connection to the broker, from CONNECT to its end, with a paho client of its own."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edged.faults import Fault
from edged.mqtt import connection_faults
from edged.mqtt.client import CONNECT_SECONDS, PahoClient, connect, make_client, subscribe
from edged.mqtt.events import Receipt
from edged.mqtt.session_plan import Ending, Incoming, Listener, Publication, SessionPlan, Subscription
from edged.settings import SettingsError
from edged.tls import CredentialsError

WINDOW = 32
"""QoS 1 publications handed to the broker and not yet acknowledged."""
PIECES = 256
"""QoS 0 publications not yet written to the socket; further ones are dropped."""
UNACKNOWLEDGED = 256
"""Messages received and not acknowledged at which reading stops, so that a broker that knows no Receive Maximum, or
forgets it (mosquitto 2.0.11 after the first PUBACK), waits in TCP instead of filling our memory."""
UNACKNOWLEDGED_BYTES = 16 << 20
"""The same for their bytes: so many of the largest would be half a gigabyte."""
DISCONNECT_SECONDS = 2.0
"""For writing DISCONNECT and what is queued before it."""
_PACKET_OVERHEAD = 32
"""Bytes of a PUBLISH beside topic, payload and correlation data, at most."""


class Session:
    """paho is touched by one thread only, the one in `run`: other threads leave commands and wake it.

    `loop_forever` in a thread of one's own would not do: paho then writes to the socket in whichever thread
    calls `publish` or `ack` (`Client._packet_queue`), beside the loop, and packets are torn or change places.
    """

    def __init__(self, plan: SessionPlan, listener: Listener) -> None:
        self._plan = plan
        self._listener = listener
        self._lock = threading.Lock()
        self._commands: deque[Receipt | Publication | str] = deque()
        self._under_way: dict[int, Publication] = {}
        self._unacknowledged = self._unacknowledged_bytes = 0
        self._free = 0
        self._pieces = PIECES
        self._is_ready = False
        self._ended = False
        self._close_by: float | None = None
        self._closing = False
        self._fault: Fault | None = None
        self._accepted_at: float | None = None
        self._session_present = False
        self._largest_packet: int | None = None
        self.turned_at: float | None = None
        """When its loop last turned (CLOCK_MONOTONIC), None before and after. Any thread may read."""
        self._shared_allowed = True
        self._steps = deque(plan.steps)
        self._asked: tuple[int | None, Sequence[Subscription]] = (None, ())
        self._refused: list[str] = []
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)

    # What any thread may call.

    @property
    def window(self) -> int:
        """How many QoS 1 publications would be taken now."""
        with self._lock:
            return self._free if self._is_ready else 0

    def publish(self, publication: Publication) -> bool:
        """Take the publication, or return False when not connected, closing, or without a free place."""
        with self._lock:
            if not self._is_ready or self._close_by is not None:
                return False
            if publication.qos > 0:
                if self._free <= 0:
                    return False
                self._free -= 1
            else:
                if self._pieces <= 0:
                    return False
                self._pieces -= 1
            self._commands.append(publication)
        self._wake()
        return True

    def acknowledge(self, receipt: Receipt) -> bool:
        """Send PUBACK for a QoS 1 message; one of QoS 0 needs none.

        False when this connection has ended: the broker sends the message again on the next one.
        """
        return receipt.qos == 0 or self._command(receipt)

    def unsubscribe(self, topic: str) -> None:
        """Give up a subscription that an earlier life of the device left in the broker's session."""
        self._command(topic)

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
            return  # full: it is awake already; closed: the connection has ended

    # What only the connection's thread does.

    def run(self) -> Ending:
        """Connect, carry messages until the end, say how it ended."""
        try:
            client = make_client(self._plan, WINDOW)
            client.on_connect = self._on_connect
            client.on_subscribe = self._on_subscribe
            client.on_disconnect = self._on_disconnect
            client.on_message = self._on_message
            client.on_publish = self._on_publish
            try:
                connect(client, self._plan)
            except (OSError, ValueError) as error:
                return Ending(connection_faults.connect_failed(error, self._plan.mqtt))
            if self._close_by is None:
                self._pump(client)
            else:
                self._closing = True  # asked for during the handshake; CONNECT would throw another client out
            return self._conclude(client)
        except (CredentialsError, SettingsError) as error:
            return Ending(connection_faults.credentials_unusable(error))
        finally:
            self.turned_at = None
            with self._lock:
                self._ended = True
                self._is_ready = False
                self._commands.clear()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _pump(self, client: PahoClient) -> None:
        """Drive paho until its socket is closed."""
        started = time.monotonic()
        give_up: float | None = None
        sock = client.socket()
        assert sock is not None
        tls = sock if isinstance(sock, ssl.SSLSocket) else None
        nap = max(1.0, self._plan.mqtt.keep_alive / 4)
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            while client.socket() is not None:
                self._run_commands(client)
                self.turned_at = now = time.monotonic()
                if self._accepted_at is None and now - started >= CONNECT_SECONDS:
                    self._end_with(connection_faults.UNANSWERED)
                    sock.close()
                    return
                if give_up is None and self._should_disconnect(now):
                    self._closing = True
                    client.disconnect()
                    give_up = now + DISCONNECT_SECONDS
                elif give_up is not None and now >= give_up:
                    sock.close()
                    return
                full = self._full and self._close_by is None
                interest = (0 if full else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.want_write() else 0)
                if sock in selector.get_map():
                    selector.unregister(sock)
                if interest:
                    selector.register(sock, interest)
                ready = selector.select(self._seconds_to_wait(now, nap, started, give_up, tls))
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

    @property
    def _full(self) -> bool:
        """Whether so much is unacknowledged that no more should be read."""
        return self._unacknowledged >= UNACKNOWLEDGED or self._unacknowledged_bytes >= UNACKNOWLEDGED_BYTES

    def _seconds_to_wait(
        self, now: float, nap: float, started: float, give_up: float | None, tls: ssl.SSLSocket | None
    ) -> float:
        if tls is not None and tls.pending() and not self._full:
            return 0.0
        until = now + nap
        if self._accepted_at is None:
            until = min(until, started + CONNECT_SECONDS)
        if give_up is not None:
            until = min(until, give_up)
        elif self._close_by is not None:
            until = min(until, self._close_by)
        return max(0.0, until - now)

    def _should_disconnect(self, now: float) -> bool:
        close_by = self._close_by
        if close_by is None:
            return False
        if self._commands:  # given before the order to close, an acknowledgement among them: they leave first
            return False
        acknowledged = all(publication.qos == 0 for publication in self._under_way.values())
        return acknowledged or now >= close_by or not self._is_ready

    def _run_commands(self, client: Client) -> None:
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, Receipt):
                client.ack(command.mid, command.qos)
                self._unacknowledged -= 1
                self._unacknowledged_bytes -= command.size
            elif isinstance(command, str):
                client.unsubscribe(command)
            else:
                self._send(client, command)

    def _send(self, client: Client, publication: Publication) -> None:
        correlation = publication.correlation
        size = len(publication.topic.encode()) + len(publication.payload) + len(correlation or b"") + _PACKET_OVERHEAD
        if self._largest_packet is not None and size > self._largest_packet:
            # Sent all the same, it would cost the connection (MQTT 5 §3.2.2.3.6), now and at every attempt.
            reason = f"{publication.topic}: {size} bytes, but the broker takes at most {self._largest_packet}"
            self._release(publication)
            self._refuse(publication, reason, None)
            return
        properties: Any = None
        if self._plan.protocol == "5" and correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.CorrelationData = correlation
        try:
            while True:
                info = client.publish(
                    publication.topic, publication.payload, publication.qos, publication.retain, properties
                )
                # After 65,535 messages paho's next packet id may still be under way; it then takes nothing.
                if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
                    break
        except ValueError as error:
            self._release(publication)
            self._refuse(publication, f"{publication.topic!r} cannot be published to: {error}", None)
            return
        self._under_way[info.mid] = publication

    def _release(self, publication: Publication) -> None:
        with self._lock:
            if publication.qos > 0:
                self._free += 1
            else:
                self._pieces += 1

    def _refuse(self, publication: Publication, reason: str, code: int | None) -> None:
        if publication.token is not None:
            self._listener.publish_refused(publication.token, reason, code)

    def _end_with(self, fault: Fault) -> None:
        """Keep the first fault: the others follow from it."""
        if self._fault is None:
            self._fault = fault

    def _conclude(self, client: PahoClient) -> Ending:
        if self._accepted_at is not None:
            fault = connection_faults.CLOSED if self._closing else self._fault or connection_faults.LOST
            return Ending(fault, time.monotonic() - self._accepted_at)
        if isinstance(client.socket_error, ssl.SSLError):
            return Ending(connection_faults.tls_read_failed(client.socket_error, self._plan.mqtt))
        return Ending(connection_faults.CLOSED if self._closing else self._fault or connection_faults.LOST)

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
            self._end_with(connection_faults.connack_refused(code, self._plan.mqtt))
            return
        self._accepted_at = time.monotonic()
        self._session_present = flags.session_present
        with self._lock:
            # paho does not look at the broker's Receive Maximum (§3.2.2.3.3); beyond it, the broker hangs up.
            self._free = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        self._largest_packet = getattr(properties, "MaximumPacketSize", None)
        self._shared_allowed = getattr(properties, "SharedSubscriptionAvailable", 1) == 1
        self._next_step(client)

    def _next_step(self, client: Client) -> None:
        while self._steps:
            step = list(self._steps.popleft())
            if not self._shared_allowed:
                # Asked for all the same, such a broker hangs up (§3.2.2.3.13).
                self._refused += [wanted.topic for wanted in step if wanted.topic.startswith("$share/")]
                step = [wanted for wanted in step if not wanted.topic.startswith("$share/")]
            if step:
                self._asked = subscribe(client, self._plan, step), step
                return
        with self._lock:
            self._is_ready = True
        self._listener.ready(self._session_present, tuple(self._refused))

    def _on_subscribe(
        self, client: Client, _data: object, mid: int, codes: list[ReasonCode], _properties: Properties | None
    ) -> None:
        expected, step = self._asked
        if mid != expected:
            return
        self._refused += [
            wanted.topic for wanted, code in zip(step, codes, strict=False) if code.is_failure and not wanted.optional
        ]
        self._next_step(client)

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        code: ReasonCode | None,
        _properties: Properties | None,
    ) -> None:
        from_broker = flags.is_disconnect_packet_from_server
        if code is None:
            self._end_with(connection_faults.LOST)
        elif self._accepted_at is None and not from_broker:
            self._end_with(connection_faults.closed_before_connack(code, self._plan.mqtt))
        else:
            self._end_with(connection_faults.disconnected(code, from_broker))

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        properties = message.properties
        correlation = getattr(properties, "CorrelationData", None)
        receipt = Receipt(self, message.mid, message.qos, len(message.payload) + len(correlation or b""))
        if message.qos > 0:
            self._unacknowledged += 1
            self._unacknowledged_bytes += receipt.size
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._listener.received(
            Incoming(
                receipt=receipt,
                topic=topic,
                payload=bytes(message.payload),
                retained=message.retain,
                redelivered=message.dup,
                response_topic=getattr(properties, "ResponseTopic", None),
                correlation=correlation,
                expiry_seconds=getattr(properties, "MessageExpiryInterval", None),
            )
        )

    def _on_publish(
        self, _client: Client, _data: object, mid: int, code: ReasonCode, _properties: Properties | None
    ) -> None:
        publication = self._under_way.pop(mid, None)
        if publication is None:
            return
        self._release(publication)
        if code.is_failure:
            self._refuse(publication, connection_faults.publication_refused(code, publication.topic), code.value)
        elif publication.token is not None:
            self._listener.published(publication.token)
