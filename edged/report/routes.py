"""What the daemon answers over HTTP: the page for people, metrics for Prometheus, health for supervisors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from edged.faults import Fault
from edged.report import page
from edged.report.http import Answer, Routes
from edged.status import LatestStatus

_NEVER_KEPT = ("Cache-Control", "no-store")


def daemon_routes(
    metrics: Callable[[str], tuple[bytes, str]], latest: LatestStatus, overview: Callable[[], dict[str, Any]]
) -> Routes:
    """`metrics` gives them with their content type, for an Accept header, `overview` the document of /status.json."""

    def ready(_accept: str) -> Answer:
        current = latest.current
        warnings = [asdict(warning) for warning in current.warnings]
        return _probe(
            current.ready_faults(time.monotonic()),
            warnings=warnings,
            broker=current.broker,
            protocol=current.protocol,
        )

    return {
        "/": lambda _: Answer(
            page.render(overview()), "text/html; charset=utf-8", headers=(_NEVER_KEPT, *page.HEADERS)
        ),
        "/status.json": lambda _: Answer(_json(overview()), "application/json", headers=(_NEVER_KEPT,)),
        "/metrics": lambda accept: Answer(*metrics(accept)),
        "/healthz": lambda _: _probe(latest.current.alive_faults(time.monotonic())),
        "/readyz": ready,
    }


def _probe(faults: Sequence[Fault], **more: object) -> Answer:
    """The answer to a health check; only `faults` decide about the status."""
    status = "503 Service Unavailable" if faults else "200 OK"
    return Answer(
        _json({"ok": not faults, "faults": [asdict(fault) for fault in faults], **more}), "application/json", status
    )


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
