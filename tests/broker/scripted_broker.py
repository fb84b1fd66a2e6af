"""A small MQTT broker for tests that answers as a script says: any CONNACK, SUBACK and PUBACK, or a hang-up.

It keeps no sessions, and routes messages back to their sender only. What it received is in queues; packets are MQTT 5
or 3.1.1 by the CONNECT.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 1, 2, 3, 4, 8, 9, 10, 11
PINGREQ, DISCONNECT = 12, 14


@dataclass(frozen=True)
class Connect:
    """A CONNECT as it came. `version`: 4 is 3.1.1, 5 is 5."""

    version: int
    client_id: str
    keep_alive: int
    flags: int

    @property
    def has_will(self) -> bool:
        return bool(self.flags & 0x04)

    @property
    def will_qos(self) -> int:
        return self.flags >> 3 & 3

    @property
    def will_retain(self) -> bool:
        return bool(self.flags & 0x20)


@dataclass(frozen=True)
class Publish:
    """A PUBLISH as it came; `packet_id` is 0 at QoS 0."""

    client_id: str
    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int


@dataclass(frozen=True)
class Subscribe:
    """A SUBSCRIBE as it came."""

    client_id: str
    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass
class Answer:
    """The reason code and properties of an answer; `hang_up` closes the connection in its place.

    `raw`: properties as bytes, also such as MQTT does not allow. `silent`: the packet is not answered.
    """

    code: int = 0
    hang_up: bool = False
    properties: dict[str, Any] | None = None
    raw: bytes | None = None
    silent: bool = False


HANG_UP = Answer(hang_up=True)
NO_ANSWER = Answer(silent=True)


class ScriptedBroker:
    """Listens on a port of 127.0.0.1. The functions decide about each packet, in the threads of the connections.

    `on_subscribe` returns one reason code per filter, or an Answer that stands for all of them; `on_unsubscribe`
    returns the code for one filter.
    """

    def __init__(
        self,
        on_connect: Callable[[Connect], Answer] = lambda _connect: Answer(),
        on_subscribe: Callable[[Subscribe], list[int] | Answer] = lambda packet: [qos & 3 for _, qos in packet.filters],
        on_publish: Callable[[Publish], Answer] = lambda _publish: Answer(),
        on_unsubscribe: Callable[[str], int] = lambda _filter: 0,
        echo: Callable[[str], str | None] = lambda topic: topic,
    ) -> None:
        """`echo`: on which topic a client gets what it publishes to a topic that it subscribes to; None: not at all."""
        self.echo = echo
        self.on_connect, self.on_subscribe, self.on_publish = on_connect, on_subscribe, on_publish
        self.on_unsubscribe = on_unsubscribe
        self.connects: queue.SimpleQueue[Connect] = queue.SimpleQueue()
        self.subscribes: queue.SimpleQueue[Subscribe] = queue.SimpleQueue()
        self.publishes: queue.SimpleQueue[Publish] = queue.SimpleQueue()
        self.unsubscribes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.pings: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        """Client ids and times (CLOCK_MONOTONIC) of PINGREQs."""
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def drop(self) -> None:
        """Close every connection without a DISCONNECT."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def disconnect(self, code: int, **properties: Any) -> None:
        """Send DISCONNECT (MQTT 5) on every connection and close it."""
        packet = _packet(DISCONNECT << 4, bytes([code]) + _properties(5, PacketTypes.DISCONNECT, properties))
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.sendall(packet)
        self.drop()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        with connection, contextlib.suppress(OSError, EOFError):
            _Conversation(self, connection).run()
        self._open.discard(connection)


class _Conversation:
    def __init__(self, broker: ScriptedBroker, connection: socket.socket) -> None:
        self._broker, self._connection = broker, connection
        self._version, self._client_id = 5, ""
        self._filters: set[str] = set()

    def run(self) -> None:
        while True:
            header, body = self._read_packet()
            answer = self._answer(header, body)
            if answer is None:
                return
            self._connection.sendall(answer)

    def _read_packet(self) -> tuple[int, bytes]:
        header = self._read(1)[0]
        size = shift = 0
        while True:
            byte = self._read(1)[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return header, self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self._connection.recv(size - len(data))):
                raise EOFError
            data += more
        return data

    def _answer(self, header: int, body: bytes) -> bytes | None:
        """The packet to send, possibly empty; None: hang up."""
        kind = header >> 4
        if kind == CONNECT:
            return self._connect(body)
        if kind == SUBSCRIBE:
            return self._subscribe(body)
        if kind == UNSUBSCRIBE:
            return self._unsubscribe(body)
        if kind == PUBLISH:
            return self._publish(header, body)
        if kind == PINGREQ:
            self._broker.pings.put((self._client_id, time.monotonic()))
            return b"\xd0\x00"
        return None if kind == DISCONNECT else b""

    def _connect(self, body: bytes) -> bytes | None:
        self._version, flags = body[6], body[7]
        at = 10 + (_properties_size(body[10:]) if self._version == 5 else 0)
        self._client_id, _ = _text(body, at)
        packet = Connect(self._version, self._client_id, int.from_bytes(body[8:10], "big"), flags)
        self._broker.connects.put(packet)
        answer = self._broker.on_connect(packet)
        if answer.hang_up:
            return None
        rest = _properties(self._version, PacketTypes.CONNACK, answer.properties)
        if answer.raw is not None:
            rest = bytes([len(answer.raw)]) + answer.raw
        self._connection.sendall(_packet(CONNACK << 4, bytes([0, answer.code]) + rest))
        return b"" if answer.code == 0 else None

    def _subscribe(self, body: bytes) -> bytes | None:
        packet_id = int.from_bytes(body[:2], "big")
        at = 2 + (_properties_size(body[2:]) if self._version == 5 else 0)
        filters = []
        while at < len(body):
            topic, at = _text(body, at)
            filters.append((topic, body[at]))
            at += 1
        packet = Subscribe(self._client_id, packet_id, tuple(filters))
        self._filters |= {topic for topic, _ in filters}
        self._broker.subscribes.put(packet)
        answer = self._broker.on_subscribe(packet)
        properties = None
        if isinstance(answer, Answer):
            if answer.hang_up or answer.silent:
                return None if answer.hang_up else b""
            codes, properties = [answer.code] * len(filters), answer.properties
        else:
            codes = answer
        return _packet(
            SUBACK << 4, body[:2] + _properties(self._version, PacketTypes.SUBACK, properties) + bytes(codes)
        )

    def _unsubscribe(self, body: bytes) -> bytes:
        at = 2 + (_properties_size(body[2:]) if self._version == 5 else 0)
        codes = []
        while at < len(body):
            topic, at = _text(body, at)
            codes.append(self._broker.on_unsubscribe(topic))
            self._filters.discard(topic)
            self._broker.unsubscribes.put(topic)
        rest = _properties(5, PacketTypes.UNSUBACK, None) + bytes(codes) if self._version == 5 else b""
        return _packet(UNSUBACK << 4, body[:2] + rest)

    def _publish(self, header: int, body: bytes) -> bytes | None:
        qos = header >> 1 & 3
        topic, at = _text(body, 0)
        packet_id = int.from_bytes(body[at : at + 2], "big") if qos else 0
        at += 2 if qos else 0
        at += _properties_size(body[at:]) if self._version == 5 else 0
        packet = Publish(self._client_id, topic, body[at:], qos, bool(header & 1), packet_id)
        self._broker.publishes.put(packet)
        answer = self._broker.on_publish(packet)
        if answer.hang_up or answer.silent:
            return None if answer.hang_up else b""
        echo = self._echo(packet) if packet.topic in self._filters else b""
        if not qos:
            return echo
        rest = b""
        if self._version == 5 and (answer.code or answer.properties):
            rest = bytes([answer.code]) + _properties(5, PacketTypes.PUBACK, answer.properties)
        return _packet(PUBACK << 4, struct.pack("!H", packet_id) + rest) + echo

    def _echo(self, packet: Publish) -> bytes:
        """The message as a PUBLISH of QoS 0 for its sender."""
        if (topic := self._broker.echo(packet.topic)) is None:
            return b""
        name = topic.encode()
        return _packet(
            PUBLISH << 4, struct.pack("!H", len(name)) + name + b"\0" * (self._version == 5) + packet.payload
        )


def _packet(header: int, body: bytes) -> bytes:
    return bytes([header]) + VariableByteIntegers.encode(len(body)) + body


def _text(body: bytes, at: int) -> tuple[str, int]:
    size = int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : at + 2 + size].decode(), at + 2 + size


def _properties_size(body: bytes) -> int:
    """Bytes of the properties, their length included."""
    size, size_bytes = VariableByteIntegers.decode(body[:4])
    return int(size + size_bytes)


def _properties(version: int, kind: int, properties: dict[str, Any] | None) -> bytes:
    if version != 5:
        return b""
    packed: Any = Properties(kind)
    for name, value in (properties or {}).items():
        setattr(packed, name, value)
    return bytes(packed.pack())


@pytest.fixture
def script() -> Iterator[Callable[..., ScriptedBroker]]:
    """Makes scripted brokers, by ScriptedBroker's arguments, and closes them in the end."""
    brokers: list[ScriptedBroker] = []

    def make(**functions: Any) -> ScriptedBroker:
        brokers.append(ScriptedBroker(**functions))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close()
