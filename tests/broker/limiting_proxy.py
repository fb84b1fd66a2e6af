"""A TCP proxy before a broker that hangs up on MQTT packets above a size, as brokers do that announce no limit."""

from __future__ import annotations

import contextlib
import socket
import threading

Ends = tuple[socket.socket, socket.socket]


class LimitingProxy:
    """Listens on `port` of loopback and forwards to `target`. Both ends of a connection are closed together."""

    def __init__(self, target: int, limit: int | None = None, whole: bool = False) -> None:
        """`limit`: bytes of the largest packet that a client may send. `whole`: read a larger one to its end first."""
        self.limit, self.whole, self._target = limit, whole, target
        self.refusing = False
        """Close new connections at once: the line is down."""
        self.hung_up: list[int] = []
        """Sizes of the packets on which it hung up."""
        self._pairs: list[Ends] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close every connection, as a line that flaps."""
        for pair in list(self._pairs):
            _close(*pair)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.refusing:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                self._pairs.append((near, far))
                for target, ends in ((self._to_broker, (near, far)), (self._to_client, (far, near))):
                    threading.Thread(target=target, args=ends, daemon=True).start()

    def _to_client(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        _close(source, sink)

    def _to_broker(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head, size = _read_header(source)
                if self.limit is not None and len(head) + size > self.limit:
                    self.hung_up.append(len(head) + size)
                    if self.whole:
                        _read(source, size)
                    break
                sink.sendall(head + _read(source, size))
        self._pairs = [pair for pair in self._pairs if pair[0] is not source]
        _close(source, sink)
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


def _close(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
