"""paho's client, made to tell why it failed and to survive a message that it cannot decode."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from typing import Any

import structlog
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.subscribeoptions import SubscribeOptions

from edged.mqtt.plan import Plan, Subscription
from edged.tls import client_context, read_password

CONNECT_SECONDS = 10.0
"""For the TCP connection, for the TLS handshake and for CONNACK, each."""

_log = structlog.get_logger(__name__)


class PahoClient(Client):
    """The overridden methods are inner ones of paho; tests/broker shows that they still take effect."""

    socket_error: OSError | None = None
    """What the operating system or OpenSSL said when the connection broke; paho itself only logs it."""

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.socket_error = error
            raise

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.socket_error = error
            # A TLS alert that says why may have come before the broker closed; reading notes it.
            with contextlib.suppress(OSError):
                self._sock_recv(1)
            raise

    def _handle_publish(self) -> MQTTErrorCode:
        """Deliver a message without its properties where paho refuses to decode them.

        paho takes a string property with U+FEFF (a byte order mark), which MQTT 5 §1.5.4 allows and brokers
        pass on, for a malformed packet and drops the connection. The broker then sends it again, for ever.
        """
        try:
            return super()._handle_publish()
        except MalformedPacket as error:
            packet = without_properties(self._in_packet["command"], bytes(self._in_packet["packet"]))
            if packet is None:
                raise
            _log.warning("mqtt_properties_unreadable", why=str(error))
            self._in_packet["packet"] = bytearray(packet)
            return super()._handle_publish()


def without_properties(header: int, packet: bytes) -> bytes | None:
    """An MQTT 5 PUBLISH (§3.3.2, after the fixed header) without its properties; None if malformed."""
    try:
        (topic_size,) = struct.unpack_from("!H", packet)
        start = 2 + topic_size + (2 if header & 0x06 else 0)
        size, size_bytes = VariableByteIntegers.decode(packet[start : start + 4])  # type: ignore[no-untyped-call]
    except (struct.error, MalformedPacket):
        return None
    end = start + size_bytes + size
    if end > len(packet) or size == 0:
        return None
    return packet[:start] + b"\0" + packet[end:]


def make_client(plan: Plan, window: int) -> PahoClient:
    """A client for one connection, with the credentials as they are in their files now.

    Raises CredentialsError where a file cannot be used.
    """
    is_v5 = plan.protocol == "5"
    client = PahoClient(
        CallbackAPIVersion.VERSION2,
        client_id=plan.client_id,
        clean_session=None if is_v5 else not plan.keep_session,
        protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages = window
    if plan.options.username is not None:
        client.username_pw_set(plan.options.username, read_password(plan.options))
    if plan.options.tls:
        client.tls_set_context(client_context(plan.options))
    if plan.will is not None:
        client.will_set(plan.will.topic, plan.will.payload, qos=1, retain=True)
    # With this set, paho leaves all writing to our loop instead of writing within publish() and ack().
    client.on_socket_register_write = _leave_to_loop
    return client


def connect(client: PahoClient, plan: Plan) -> None:
    """Make the TCP and TLS connection and queue CONNECT. Raises OSError or ValueError."""
    options = plan.options
    if plan.protocol != "5":
        client.connect(options.host, options.port, options.keep_alive)
        return
    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    if plan.keep_session:
        properties.SessionExpiryInterval = options.session_expiry
    properties.ReceiveMaximum = options.receive_maximum
    properties.MaximumPacketSize = options.maximum_packet_size
    # clean_start: paho's default would start every first connection of a client with an empty session.
    client.connect(
        options.host,
        options.port,
        options.keep_alive,
        clean_start=not plan.keep_session,
        properties=properties,
    )


def subscribe(client: Client, plan: Plan, step: Sequence[Subscription]) -> int | None:
    """Queue one SUBSCRIBE; its packet id."""
    if plan.protocol != "5":
        return client.subscribe([(wanted.topic, wanted.qos) for wanted in step])[1]
    send, keep = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, SubscribeOptions.RETAIN_DO_NOT_SEND
    return client.subscribe(
        [
            (wanted.topic, SubscribeOptions(qos=wanted.qos, retainHandling=send if wanted.retained else keep))
            for wanted in step
        ]
    )[1]


def _leave_to_loop(_client: Client, _data: object, _socket: object) -> None:
    """Nothing to do: the loop asks `want_write`."""
