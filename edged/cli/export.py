"""`edged export`: the metrics of a whole fleet, from what its devices say over MQTT."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import structlog
import typer
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from edged import logs
from edged.cli.common import FAILED, ConfigOption, end, settings_or_exit
from edged.endpoints import http_context
from edged.fleet.boards import STALE_SECONDS, Boards
from edged.fleet.exposition import metrics, targets
from edged.fleet.listener import listen
from edged.report.http import Answer, HttpServer, Routes
from edged.settings import address
from edged.tls import CredentialsError

log = structlog.get_logger(__name__)

PORT = 9766


def export(
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port of its HTTP endpoint; 0: any free one.")] = PORT,
    stale: Annotated[
        float, typer.Option(min=1.0, max=86400.0, help="Seconds without a word after which a device counts as down.")
    ] = STALE_SECONDS,
) -> None:
    """Serve the metrics of all devices at the broker for Prometheus: /metrics, and /sd for its service discovery."""
    settings = settings_or_exit(config)
    logs.configure(settings.log.level, settings.log.format)
    boards = Boards(settings.mqtt.root, stale=stale)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    http = settings.http
    try:
        server = HttpServer(http.host, port, _routes(boards), http_context(settings))
    except (OSError, CredentialsError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        end(FAILED, f"cannot serve on {address(http.host, port)}: {reason.lower()}")
    connection = listen(settings.mqtt, boards)
    server.start()
    connection.start()
    connection.open()
    log.info("exporting", broker=settings.mqtt.address, http=address(http.host, server.port))
    while not stopping.wait(5.0):
        logs.tell_held()
    connection.stop(1.0)
    connection.join(3.0)
    server.stop()


def _routes(boards: Boards) -> Routes:
    def health(_accept: str) -> Answer:
        status = "200 OK" if boards.connected else "503 Service Unavailable"
        text = "ok" if boards.connected else "the broker does not deliver"
        return Answer(f"{text}\n".encode(), "text/plain; charset=utf-8", status)

    return {
        "/metrics": lambda _: Answer(metrics(boards), CONTENT_TYPE_LATEST),
        "/sd": lambda _: Answer(targets(boards), "application/json"),
        "/healthz": health,
    }
