"""The demo's broker: amqtt on a thread of this process, on loopback, MQTT 3.1.1 only, in memory only."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.session import Session

_SUPPORTED_LEVEL = 4
"""The protocol level of MQTT 3.1.1 (§3.1.2.2)."""
_UNSUPPORTED_CONNACK = b"\x20\x02\x00\x01"
"""CONNACK, unacceptable protocol version (§3.2.2.3)."""


class DemoBroker:
    """A broker on 127.0.0.1. `port` is its TCP port."""

    def __init__(self, port: int = 0) -> None:
        """`port` 0: any free one. Raises OSError when the port is taken."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            self.port: int = probe.getsockname()[1]
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="demo-broker", daemon=True)

    def start(self) -> None:
        """Listen. Raises TimeoutError when the broker does not start within 10 seconds."""
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._thread.start()
        if not self._started.wait(10.0):
            raise TimeoutError("the demo's broker did not start")

    def stop(self) -> None:
        """Stop listening."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5.0)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        broker = _Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        self._started.set()
        await self._stop.wait()
        await broker.shutdown()


class _Broker(Broker):  # type: ignore[misc]
    """amqtt with two corrections.

    It refuses MQTT 5 at once: amqtt reads a CONNECT of MQTT 5 like one of 3.1.1 and waits for bytes that never come. It
    sends a retained message only to its subscribers: when a client connects, amqtt looks at the filters of all clients.
    """

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Handle a new connection; its first packet says which version of MQTT it speaks."""
        try:
            head, level = await _head(reader)
        except asyncio.IncompleteReadError:
            writer.close()
            return
        if level == _SUPPORTED_LEVEL:
            await self.external_connected(_Replayed(reader, head), StreamWriterAdapter(writer), listener_name)
            return
        writer.write(_UNSUPPORTED_CONNACK)
        writer.close()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        if any(session is subscriber for subscriber, _ in self._subscriptions.get(subscription[0], ())):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def _head(reader: asyncio.StreamReader) -> tuple[bytes, int]:
    """The bytes of a CONNECT up to its protocol level (§3.1.2), and the level. Raises asyncio.IncompleteReadError."""
    head = await reader.readexactly(2)
    while head[-1] & 0x80 and len(head) < 5:  # the remaining length has one to four bytes
        head += await reader.readexactly(1)
    head += await reader.readexactly(len(b"\0\4MQTT") + 1)
    return head, head[-1]


class _Replayed(StreamReaderAdapter):  # type: ignore[misc]
    """A stream that first returns bytes that were read before."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        super().__init__(reader)
        self._head = head

    async def read(self, n: int = -1) -> bytes:
        """Like the stream's own read(); amqtt never calls it without `n`."""
        taken, self._head = self._head[:n], self._head[n:]
        return taken + bytes(await super().read(n - len(taken)) if len(taken) < n else b"")
