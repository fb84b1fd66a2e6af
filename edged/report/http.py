"""The HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for supervisors and people."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client.exposition import CONTENT_TYPE_LATEST, ThreadingWSGIServer

from edged.faults import Fault
from edged.status import LatestStatus

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


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

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Callable[[], bytes],
        latest: LatestStatus,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen on `host`:`port` (0: any free one), with TLS where there is a `context`. Raises OSError.

        `metrics` is called on threads of the server.
        """
        self._metrics = metrics
        self._latest = latest
        kind = _QuietServer6 if ":" in host else _QuietServer
        self._server = make_server(host, port, self._answer, kind, handler_class=_QuietHandler)
        self._server.context = context
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
        path = environment.get("PATH_INFO", "")
        kind = "text/plain; charset=utf-8"
        if environment.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"only GET is answered here\n"
        elif path == "/metrics":
            status, body, kind = "200 OK", self._metrics(), CONTENT_TYPE_LATEST
        elif path == "/healthz":
            status, body, kind = _probe(self._latest.current.alive_faults(time.monotonic()))
        elif path == "/readyz":
            current = self._latest.current
            status, body, kind = _probe(current.ready_faults(time.monotonic()), warnings=current.warnings)
        else:
            status, body = "404 Not Found", b"here are /metrics, /healthz and /readyz\n"
        # Server: otherwise wsgiref names itself and Python's exact version.
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Server", "edged")])
        return [] if environment.get("REQUEST_METHOD") == "HEAD" else [body]


def _probe(faults: Sequence[Fault], **more: Sequence[Fault]) -> tuple[str, bytes, str]:
    """Status, body and content type of an answer to a health check; only `faults` decide about the status."""
    lists = {name: [asdict(fault) for fault in listed] for name, listed in {"faults": faults, **more}.items()}
    document = {"ok": not faults, **lists}
    status = "503 Service Unavailable" if faults else "200 OK"
    return status, json.dumps(document, ensure_ascii=False).encode() + b"\n", "application/json"
