"""A TCP proxy between one device and the broker that delays, loses and half-closes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass


@dataclass(eq=False)
class _Pair:
    """A connection: the device's end and the broker's."""

    near: socket.socket
    far: socket.socket
    lossy: bool = False
    """Takes bytes and drops them."""
    halved: bool = False
    """One end is gone, and the other is not told."""

    def close(self, *ends: socket.socket) -> None:
        for end in ends or (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Listens on `port` of loopback, and forwards to `target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.delay = 0.0
        """Seconds that each piece of data waits."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=5.0)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                pair = _Pair(near, far)
                self._pairs = [known for known in self._pairs if known.near.fileno() >= 0] + [pair]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(pair, *ends), daemon=True).start()

    def _forward(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.delay:
                    time.sleep(self.delay)
                if not pair.lossy:
                    sink.sendall(data)
        if pair.halved:
            source.close()
        else:
            pair.close()
            source.close()

    def lose(self, seconds: float) -> None:
        """What is sent now is lost in both directions, and then the connection is."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.lossy = True
        time.sleep(seconds)
        for pair in pairs:
            pair.close()

    def halve(self, device: bool) -> None:
        """One side loses the connection, the device's or else the broker's; the other does not notice."""
        for pair in list(self._pairs):
            pair.lossy = pair.halved = True
            pair.close(pair.near if device else pair.far)

    def close(self) -> None:
        self._listener.close()
        for pair in self._pairs:
            pair.close()
