"""The demo's broker: amqtt in a thread of this process, on loopback, MQTT 3.1.1, nothing kept."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

from amqtt.broker import Broker


class DemoBroker:
    """A broker on 127.0.0.1. `port` is its TCP port."""

    def __init__(self, port: int = 0) -> None:
        """`port` 0 takes any free one. Raises OSError when it cannot be had."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            self.port: int = probe.getsockname()[1]
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="demo-broker", daemon=True)

    def start(self) -> None:
        """Listen. Raises TimeoutError when the broker does not come up."""
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
        broker = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        self._started.set()
        await self._stop.wait()
        await broker.shutdown()
