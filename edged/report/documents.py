"""What the daemon says of itself over MQTT: the retained status and info, and health at every heartbeat."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

import edged
from edged.engine import ort
from edged.engine.engine import ModelChanged
from edged.jobs.desk import Desk
from edged.jobs.document import format_time
from edged.machine.board import Board
from edged.machine.memory import available
from edged.settings import Settings


def status_document(state: str, reason: str, model: ModelChanged, instance: str, wall: float) -> bytes:
    """Whether jobs are answered now, and if not, why. `wall`: seconds since the epoch."""
    document = {
        "state": state,
        "ready": state == "online" and not reason,
        "reason": reason or None,
        "model": model.state if model.state != "unavailable" else "model_unavailable",
        "instance": instance,
        "time": format_time(wall),
    }
    return _json(document)


def info_document(
    device: str, settings: Settings, board: Board, started: float, model: ModelChanged, tokens_per_second: Any
) -> bytes:
    """What this device is and what may be asked of it. `started`: seconds since the epoch."""
    loaded = model.loaded
    document = {
        "device": device,
        "groups": list(settings.device.groups),
        "started": format_time(started),
        "board": {
            "kind": board.kind,
            "model": board.model,
            "l4t": board.l4t,
            "cores": len(board.cores),
            "memory_available_bytes": available().bytes,
        },
        "versions": {
            "edged": edged.__version__,
            "onnxruntime": ort.version(),
            "python": platform.python_version(),
        },
        "model": {"state": model.state, "reason": model.reason or None, **_facts(model)},
        "limits": {
            "rows": loaded.rows if loaded else None,
            "context": loaded.context if loaded else None,
            "prefix_bytes": loaded.prefixes.memory.budget if loaded else None,
            "max_bytes": settings.jobs.max_bytes,
            "max_queued": settings.jobs.max_queued,
            "retention_seconds": settings.jobs.retention,
        },
        "tokens_per_second": tokens_per_second or None,
    }
    return _json(document)


def health_document(board: Board, desk: Desk, spool_bytes: int, started: float, ready: bool, wall: float) -> bytes:
    """How the device is. `started` and `wall`: seconds since the epoch."""
    document = {
        "time": format_time(wall),
        "uptime_seconds": round(time.time() - started, 1),
        "ready": ready,
        "queued": desk.queued,
        "running": desk.running,
        "outbox": len(desk.outbox),
        "spool_bytes": spool_bytes,
        "memory_available_bytes": available().bytes,
        "temperature_celsius": board.temperatures() or None,
        "throttled": [reason for reason, on in board.throttled().items() if on],
        "power_watts": board.power_watts() or None,
        "tokens_per_second": desk.speed or None,
    }
    return _json(document)


def model_labels(model: ModelChanged, name: str) -> dict[str, str]:
    """The labels of edged_model_info; `name` stands for a model that is not loaded."""
    loaded = model.loaded
    return {
        "name": loaded.package.name if loaded else name,
        "state": model.state,
        "execution_provider": loaded.session.providers[0] if loaded else "",
        "reason": loaded.choice.reason if loaded else model.reason,
    }


def _facts(model: ModelChanged) -> dict[str, Any]:
    loaded = model.loaded
    if loaded is None:
        return {}
    return {
        "name": loaded.package.name,
        "architecture": loaded.package.architecture,
        "execution_provider": loaded.session.providers[0],
        "execution_provider_reason": loaded.choice.reason,
        "threads": loaded.threads,
        "planned_bytes": loaded.plan.peak,
        "verified": loaded.verified is not None,
        "lone_rows_padded": loaded.bits.lone_row_differs,
        "same_ids_in_any_company": not (loaded.bits.batches_differ or loaded.bits.chunks_differ),
        "load_seconds": round(loaded.load_seconds, 3),
    }


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in document.items() if v is not None}, ensure_ascii=False).encode()
