"""paho's client, extended: it keeps the error that broke the connection, and accepts properties that paho rejects."""

from __future__ import annotations

import contextlib
import ssl
import struct
from typing import Any

import structlog
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

from edged.mqtt import reason_codes
from edged.mqtt.events import Acknowledging, Receipt, ReceivedMessage
from edged.mqtt.reason_codes import ReasonCode
from edged.mqtt.session_types import SessionOptions
from edged.tls import client_context

CONNECT_SECONDS = 10.0
"""Time limit for the TCP connection, for the TLS handshake and for CONNACK, each."""
RECEIVE_MAXIMUM = 64
"""Unacknowledged messages that an MQTT 5 broker may have under way towards us (§3.1.2.11.3)."""
MAXIMUM_PACKET_SIZE = 2 * 1024 * 1024
"""Bytes. An MQTT 5 broker drops larger messages and tells nobody (§3.1.2.11.4)."""
SESSION_EXPIRY_SECONDS = 7 * 24 * 3600
"""How long an MQTT 5 broker keeps the session of an absent device (§3.1.2.11.2)."""

_log = structlog.get_logger(__name__)


class PahoClient(Client):
    """Overrides private methods of paho; tests/broker fails when a new version of paho no longer calls them."""

    socket_error: OSError | None = None
    """The error of the operating system or OpenSSL that broke the connection; paho only logs it."""
    closed_by_peer = False
    """Whether the other side closed the connection or reset it; paho tells this from no other loss."""
    codes: tuple[ReasonCode, ...] = ()
    """The reason codes of the packet that a callback is about; none is success."""
    malformed = False
    """Whether the broker has sent a packet that cannot be read; paho then closes the connection."""

    def ping_within(self, seconds: float) -> None:
        """Ping the broker at least every `seconds`, in a loop that turns every quarter of that time.

        paho 2.1 ignores the broker's Server Keep Alive, and 2.2 checks only when the loop turns.
        """
        self._keepalive = seconds * 3 / 4  # type: ignore[assignment]

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            data = super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self._note_error(error)
            raise
        if not data:
            self.closed_by_peer = True
        return data

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self._note_error(error)
            # A TLS alert that says why may have come before the broker closed; reading notes it.
            with contextlib.suppress(OSError):
                self._sock_recv(1)
            raise

    def _note_error(self, error: OSError) -> None:
        self.socket_error = error
        # A broker that closes with bytes of ours unread sends a reset.
        if isinstance(error, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            self.closed_by_peer = True

    def _packet_handle(self) -> MQTTErrorCode:
        """Note the reason codes of the packet, and give paho only such as it takes."""
        kind, is_v5 = self._in_packet["command"] >> 4, self._protocol == MQTTProtocolVersion.MQTTv5
        try:
            if kind in reason_codes.KINDS:
                self.codes, packet = reason_codes.read(kind, bytes(self._in_packet["packet"]), is_v5)
                self._in_packet["packet"] = bytearray(packet)
            return super()._packet_handle()
        except MalformedPacket:
            self.malformed = True
            raise
        finally:
            self.codes = ()

    def _handle_publish(self) -> MQTTErrorCode:
        """Deliver a message with only the properties that edged reads, or without any if they are malformed.

        paho's time to decode them grows with the square of their size: one message with a megabyte of user properties
        would hold the connection's thread for a minute. And it takes a string with U+FEFF (a byte order mark), which
        MQTT 5 §1.5.4 allows and brokers pass on, for a malformed packet and drops the connection. The broker then
        sends the message again, for ever.
        """
        if self._protocol == MQTTProtocolVersion.MQTTv5:
            header, packet = self._in_packet["command"], bytes(self._in_packet["packet"])
            lean = with_needed_properties(header, packet)
            if lean is None:
                return self._without_properties("their encoding is broken")
            self._in_packet["packet"] = bytearray(lean)
        try:
            return super()._handle_publish()
        except MalformedPacket as error:
            return self._without_properties(str(error))

    def _without_properties(self, why: str) -> MQTTErrorCode:
        packet = without_properties(self._in_packet["command"], bytes(self._in_packet["packet"]))
        if packet is None:
            raise MalformedPacket("a PUBLISH without an end to its topic or properties")
        _log.warning("mqtt_properties_unreadable", why=why)
        self._in_packet["packet"] = bytearray(packet)
        return super()._handle_publish()


_NEEDED = (0x02, 0x08, 0x09)
"""Message Expiry Interval, Response Topic, Correlation Data (MQTT 5 §3.3.2.3)."""
_FIXED_SIZES = {0x01: 1, 0x02: 4, 0x23: 2}
_STRINGS = {0x03: 1, 0x08: 1, 0x09: 1, 0x26: 2}
"""How many length-prefixed fields follow."""
_SUBSCRIPTION_ID = 0x0B


def with_needed_properties(header: int, packet: bytes) -> bytes | None:
    """An MQTT 5 PUBLISH (§3.3.2, after the fixed header) with the properties that edged reads; None if malformed."""
    place = _properties_at(header, packet)
    if place is None:
        return None
    start, at, end = place
    kept: dict[int, bytes] = {}
    try:
        while at < end:
            kind, begin, at = packet[at], at, at + 1
            if kind == _SUBSCRIPTION_ID:
                at += VariableByteIntegers.decode(packet[at : at + 4])[1]  # type: ignore[no-untyped-call]
            elif kind in _STRINGS:
                for _ in range(_STRINGS[kind]):
                    at += 2 + struct.unpack_from("!H", packet, at)[0]
            else:
                at += _FIXED_SIZES[kind]
            if kind in _NEEDED:
                kept[kind] = packet[begin:at]
    except (struct.error, MalformedPacket, KeyError, IndexError):
        return None
    if at != end:
        return None
    properties = b"".join(kept.values())
    return packet[:start] + VariableByteIntegers.encode(len(properties)) + properties + packet[end:]  # type: ignore[no-untyped-call,no-any-return]


def without_properties(header: int, packet: bytes) -> bytes | None:
    """An MQTT 5 PUBLISH without its properties; None if malformed."""
    place = _properties_at(header, packet)
    return None if place is None else packet[: place[0]] + b"\0" + packet[place[2] :]


def _properties_at(header: int, packet: bytes) -> tuple[int, int, int] | None:
    """Offsets of the properties' length, of the properties, and of the payload after them."""
    try:
        (topic_size,) = struct.unpack_from("!H", packet)
        start = 2 + topic_size + (2 if header & 0x06 else 0)
        size, size_bytes = VariableByteIntegers.decode(packet[start : start + 4])  # type: ignore[no-untyped-call]
    except (struct.error, MalformedPacket, IndexError):
        return None
    end = start + size_bytes + size
    return (start, start + size_bytes, end) if end <= len(packet) else None


def make_client(plan: SessionOptions, window: int) -> PahoClient:
    """A client for one connection, with the present content of the credentials' files.

    Raises CredentialsError or SettingsError where a file cannot be used.
    """
    mqtt = plan.mqtt
    is_v5 = plan.protocol == "5"
    client = PahoClient(
        CallbackAPIVersion.VERSION2,
        client_id=plan.client_id,
        clean_session=None if is_v5 else not plan.keep_session,
        protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
        transport="tcp" if mqtt.websocket_path is None else "websockets",
    )
    if mqtt.websocket_path is not None:
        client.ws_set_options(mqtt.websocket_path)
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages = window
    if mqtt.username is not None:
        client.username_pw_set(mqtt.username, mqtt.read_password())
    if mqtt.tls:
        client.tls_set_context(client_context(mqtt.ca_file, mqtt.cert_file, mqtt.key_file, mqtt.alpn))
    if plan.will is not None:
        client.will_set(plan.will.topic, plan.will.payload, plan.will_limits.qos, plan.will_limits.retain)
    # With this set, paho leaves all writing to our loop instead of writing within publish() and ack().
    client.on_socket_register_write = _leave_to_loop
    return client


def connect(client: PahoClient, plan: SessionOptions) -> None:
    """Make the TCP and TLS connection and queue CONNECT. Raises OSError or ValueError."""
    host, port, keep_alive = plan.mqtt.host, plan.mqtt.effective_port, plan.mqtt.keep_alive
    if plan.protocol != "5":
        client.connect(host, port, keep_alive)
        return
    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    if plan.keep_session:
        properties.SessionExpiryInterval = SESSION_EXPIRY_SECONDS
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAXIMUM_PACKET_SIZE
    # clean_start: paho's default would start every first connection of a client with an empty session.
    client.connect(host, port, keep_alive, clean_start=not plan.keep_session, properties=properties)


def _leave_to_loop(_client: Client, _data: object, _socket: object) -> None:
    """Nothing to do: the loop asks `want_write`."""


def read_message(session: Acknowledging, message: MQTTMessage) -> ReceivedMessage:
    """paho's message as a value; `session` is the connection that brought it."""
    properties = message.properties
    correlation = getattr(properties, "CorrelationData", None)
    try:
        topic = message.topic
    except UnicodeDecodeError:
        topic = ""
    return ReceivedMessage(
        receipt=Receipt(session, message.mid, message.qos, len(message.payload) + len(correlation or b"")),
        topic=topic,
        payload=bytes(message.payload),
        retained=message.retain,
        redelivered=message.dup,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=correlation,
        expiry_seconds=getattr(properties, "MessageExpiryInterval", None),
    )
