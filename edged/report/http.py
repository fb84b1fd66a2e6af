"""The HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for whoever watches the daemon."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import CONTENT_TYPE_LATEST, ThreadingWSGIServer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Faults = Callable[[], list[str]]
"""What is wrong now, one sentence each; empty when all is well."""


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that connects and says nothing holds a thread no longer

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingWSGIServer):
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.context is not None:
            # The handshake comes with the first read, in the client's own thread and within its time.
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, said nothing or has no right certificate; the traceback would fill the log."""


class _QuietServer6(_QuietServer):
    address_family = socket.AF_INET6


class HttpServer:
    """Serves on its own threads until stop()."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Callable[[], bytes],
        alive: Faults,
        ready: Faults,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen on `host`:`port` (0: any free one), with TLS where there is a `context`.

        Raises OSError when the address cannot be had.
        """
        self._metrics = metrics
        self._probes = {"/healthz": alive, "/readyz": ready}
        kind = _QuietServer6 if ":" in host else _QuietServer
        self._server = make_server(host, port, self._answer, kind, handler_class=_QuietHandler)
        self._server.context = context
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO", "")
        kind = "text/plain; charset=utf-8"
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"only GET is answered here\n"
        elif path == "/metrics":
            status, body, kind = "200 OK", self._metrics(), CONTENT_TYPE_LATEST
        elif path in self._probes:
            faults = self._probes[path]()
            status = "503 Service Unavailable" if faults else "200 OK"
            kind = "application/json"
            body = json.dumps({"ok": not faults, "faults": faults}, ensure_ascii=False).encode() + b"\n"
        else:
            status, body = "404 Not Found", b"here are /metrics, /healthz and /readyz\n"
        # Server: else wsgiref names itself and Python's exact version.
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Server", "edged")])
        return [] if environment.get("REQUEST_METHOD") == "HEAD" else [body]
