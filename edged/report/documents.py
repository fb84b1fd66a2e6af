"""The MQTT documents about the daemon: the retained status and info, and health at every heartbeat."""

from __future__ import annotations

import json
import platform
from typing import Any

import edged
from edged.machine.board import Board
from edged.machine.clock import format_time
from edged.machine.memory import available
from edged.settings import Settings
from edged.status import DaemonState, Status, sentence


def status_document(device: str, status: Status) -> bytes:
    """Whether jobs are answered now, and if not, why."""
    return _status(device, status, status.state, sentence(status.faults), [fault.code for fault in status.faults])


def offline_document(device: str, status: Status, reason: str) -> bytes:
    """The status of a daemon that is gone; also the last will, which the broker publishes."""
    return _status(device, status, DaemonState.OFFLINE, reason, [])


def info_document(device: str, settings: Settings, board: Board, status: Status) -> bytes:
    """Facts about this device and the limits for its jobs."""
    model, facts = status.model, status.model.facts
    document = {
        "device": device,
        "groups": list(settings.device.groups),
        "started": format_time(status.started),
        "board": {
            "kind": board.kind,
            "model": board.model,
            "l4t": board.l4t,
            "cores": len(board.cores),
            "memory_available_bytes": available().bytes,
        },
        "versions": {
            "edged": edged.__version__,
            "onnxruntime": status.onnxruntime,
            "python": platform.python_version(),
        },
        "model": {"state": model.state, "reason": model.reason or None, **_model_facts(status)},
        "limits": {
            "rows": facts.rows if facts else None,
            "context": facts.context if facts else None,
            "prefix_bytes": facts.prefix_bytes if facts else None,
            "max_bytes": settings.jobs.max_bytes,
            "max_queued": settings.jobs.max_queued,
            "retention_seconds": settings.jobs.retention,
        },
        "tokens_per_second": status.tokens_per_second or None,
    }
    return _json(document)


def health_document(device: str, board: Board, status: Status) -> bytes:
    """Load of the device and state of the board."""
    document = {
        "device": device,
        "time": format_time(status.wall_time),
        "uptime_seconds": round(status.wall_time - status.started, 1),
        "ready": not status.faults,
        "queued": status.queued,
        "running": status.running,
        "outbox": status.outbox,
        "spool_bytes": status.spool_bytes,
        "memory_available_bytes": available().bytes,
        "temperature_celsius": board.temperatures() or None,
        "throttled": [reason for reason, on in board.throttled().items() if on],
        "power_watts": board.power_watts() or None,
        "tokens_per_second": status.tokens_per_second or None,
    }
    return _json(document)


def _status(device: str, status: Status, state: DaemonState, reason: str, codes: list[str]) -> bytes:
    model = status.model.state
    document = {
        "device": device,
        "state": state.value,
        "ready": state is DaemonState.ONLINE and not reason,
        "reason": reason or None,
        "faults": codes,
        "warnings": [warning.code for warning in status.warnings],
        "model": model if model != "unavailable" else "model_unavailable",
        "instance": status.instance,
        "time": format_time(status.wall_time),
    }
    return _json(document)


def _model_facts(status: Status) -> dict[str, Any]:
    facts = status.model.facts
    if facts is None:
        return {}
    return {
        "name": status.model.name,
        "architecture": facts.architecture,
        "execution_provider": facts.execution_provider,
        "execution_provider_reason": facts.execution_provider_reason,
        "threads": facts.threads,
        "planned_bytes": facts.planned_bytes,
        "verified": facts.verified,
        "lone_rows_padded": facts.lone_rows_padded,
        "same_ids_in_any_company": facts.same_ids_in_any_company,
        "chat": facts.chat,
        "load_seconds": round(facts.load_seconds, 3),
    }


def _json(document: dict[str, Any]) -> bytes:
    # Fields without a value are null: templates of clients break on missing ones.
    return json.dumps(document, ensure_ascii=False).encode()
