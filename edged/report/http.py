"""The HTTP server: answers GET on a few paths, on threads of its own."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


@dataclass(frozen=True)
class Answer:
    """What is answered on a path."""

    body: bytes
    content_type: str
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = ()


Routes = Mapping[str, Callable[[str], Answer]]
"""What answers on each path, given the request's Accept header; called on threads of the server."""
_PLAIN = "text/plain; charset=utf-8"


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that connects and sends nothing holds a thread no longer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingWSGIServer):
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.context is not None:
            # The handshake comes with the first read, on the thread of this client and within its timeout.
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: each client that hangs up, sends nothing or has a wrong certificate would log a traceback."""


class _QuietServer6(_QuietServer):
    address_family = socket.AF_INET6


class HttpServer:
    """Serves on its own threads until stop()."""

    def __init__(self, host: str, port: int, routes: Routes, context: ssl.SSLContext | None = None) -> None:
        """Listen on `host`:`port` (0: any free one), with TLS where there is a `context`. Raises OSError."""
        self._routes = routes
        kind = _QuietServer6 if ":" in host else _QuietServer
        self._server = make_server(host, port, self._answer, kind, handler_class=_QuietHandler)
        self._server.context = context
        self._loopback = ipaddress.ip_address(str(self._server.server_address[0])).is_loopback
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def ended(self) -> bool:
        """Whether the thread that accepts connections was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environment.get("REQUEST_METHOD")
        answer = self._find(method, environment)
        # Server: otherwise wsgiref names itself and Python's exact version.
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Server", "edged"),
        ]
        start_response(answer.status, [*headers, *answer.headers])
        return [] if method == "HEAD" else [answer.body]

    def _find(self, method: str | None, environment: WSGIEnvironment) -> Answer:
        if self._loopback and not _is_local(environment.get("HTTP_HOST", "")):
            text = b"this address answers requests to localhost or to an IP address only\n"
            return Answer(text, _PLAIN, "421 Misdirected Request")
        if method not in ("GET", "HEAD"):
            return Answer(b"only GET is answered here\n", _PLAIN, "405 Method Not Allowed")
        path = environment.get("PATH_INFO", "")
        if path not in self._routes:
            *first, last = self._routes
            return Answer(f"here are {', '.join(first)} and {last}\n".encode(), _PLAIN, "404 Not Found")
        return self._routes[path](environment.get("HTTP_ACCEPT", ""))


def _is_local(host: str) -> bool:
    """Whether a Host header names no other name than localhost, or is missing.

    A page of a foreign name could otherwise let that name point to this machine (DNS rebinding) and read what is here
    with the browser of a person who sits at it.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        return name in ("", "localhost") or bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False
