"""A TCP proxy before a broker that hangs up on MQTT packets above a size, as brokers do that announce no limit."""

from __future__ import annotations

import contextlib
import socket

from broker_rig import Proxy


class LimitingProxy(Proxy):
    """Hangs up on a client that sends a packet larger than `limit`."""

    def __init__(self, target: int, limit: int | None = None, whole: bool = False) -> None:
        """`limit`: bytes of the largest packet that a client may send. `whole`: read a larger one to its end first."""
        self.limit, self.whole = limit, whole
        self.hung_up: list[int] = []
        """Sizes of the packets on which it hung up."""
        super().__init__(target)

    def forward(self, source: socket.socket, sink: socket.socket) -> None:
        if not any(source is near for near, _ in self._pairs):
            super().forward(source, sink)
            return
        with contextlib.suppress(OSError, EOFError):
            while True:
                head, size = _read_header(source)
                if self.limit is not None and len(head) + size > self.limit:
                    self.hung_up.append(len(head) + size)
                    if self.whole:
                        _read(source, size)
                    break
                sink.sendall(head + _read(source, size))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        # What is not read makes the kernel reset the connection, as with a broker that reads no further.
        source.close()


def _read_header(source: socket.socket) -> tuple[bytes, int]:
    """A packet's fixed header (MQTT 5 §2.1.1) and its Remaining Length."""
    head = _read(source, 2)
    while head[-1] & 0x80:
        head += _read(source, 1)
    return head, sum((byte & 0x7F) << 7 * place for place, byte in enumerate(head[1:]))


def _read(source: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (more := source.recv(min(65536, size - len(data)))):
            raise EOFError
        data += more
    return bytes(data)
