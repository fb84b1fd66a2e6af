"""The MQTT documents about the daemon: the retained status and info, and health at every heartbeat."""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Mapping
from typing import Any

import edged
from edged import logs
from edged.machine.addresses import addresses
from edged.machine.board import Board
from edged.machine.clock import format_time
from edged.machine.memory import available
from edged.machine.sensors.quantities import POWER, TEMPERATURE
from edged.machine.sensors.readings import Readings
from edged.settings import Settings
from edged.settings.model import HttpSettings
from edged.status import DaemonState, Status, sentence

Document = dict[str, Any]
HEALTH_EXPIRY_SECONDS = 7 * 86400
"""Message Expiry Interval of heartbeats: what the broker has taken off it tells their age, whatever the clocks say."""


def status_document(device: str, status: Status) -> Document:
    """Whether jobs are answered now, and if not, why."""
    return _status(device, status, status.state, sentence(status.faults), [fault.code for fault in status.faults])


def offline_document(device: str, status: Status, reason: str) -> Document:
    """The status of a daemon that is gone; also the last will, which the broker publishes."""
    return _status(device, status, DaemonState.OFFLINE, reason, [])


def info_document(device: str, settings: Settings, board: Board, status: Status) -> Document:
    """Facts about this device and the limits for its jobs."""
    model, facts = status.model, status.model.facts
    return {
        "device": device,
        "groups": list(settings.device.groups),
        "started": format_time(status.started),
        "board": {
            "kind": board.kind,
            "model": board.model,
            "serial": board.serial,
            "l4t": board.l4t,
            "cores": len(board.cores),
            "memory_available_bytes": available().bytes,
        },
        "versions": {
            "edged": edged.__version__,
            "onnxruntime": status.onnxruntime,
            "python": platform.python_version(),
            "kernel": platform.release(),
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
        "http": _http(settings.http),
        "addresses": addresses(board.root) if settings.device.addresses else None,
    }


def health_document(device: str, readings: Readings, status: Status) -> Document:
    """Load of the device and state of the board, by the last readings of its sensors."""
    now = time.monotonic()
    return {
        "device": device,
        "time": format_time(status.wall_time),
        "uptime_seconds": round(status.wall_time - status.started, 1),
        "ready": not status.faults,
        "queued": status.queued,
        "running": status.running,
        "outbox": status.outbox,
        "spool_bytes": status.spool_bytes,
        "memory_available_bytes": available().bytes,
        "temperature_celsius": readings.by_name(TEMPERATURE, now) or None,
        "throttled": readings.throttled(now),
        "power_watts": readings.by_name(POWER, now) or None,
        "total_power_watts": readings.total,
        "limited": list(status.governor.reasons),
        "tokens_per_second": status.tokens_per_second or None,
        "certificates": {name: format_time(end) for name, end in status.certificates.items()} or None,
        "counters": {
            "jobs": dict(status.ended),
            "prompt_tokens": status.prompt_tokens,
            "generated_tokens": status.generated_tokens,
            "faults": [{"event": one.event, "level": one.level, "count": one.count} for one in logs.noted()],
        },
    }


def _http(http: HttpSettings) -> Document | None:
    """Where other machines reach the HTTP endpoint; None on a loopback address, or at a port that changes."""
    if http.is_loopback or http.port == 0:
        return None
    anywhere = http.host in ("0.0.0.0", "::")
    return {"host": platform.node() if anywhere else http.host, "port": http.port, "tls": http.cert_file is not None}


def _status(device: str, status: Status, state: DaemonState, reason: str, codes: list[str]) -> Document:
    model = status.model.state
    return {
        "device": device,
        "state": state.value,
        "ready": state is DaemonState.ONLINE and not reason,
        "reason": reason or None,
        "faults": codes,
        "warnings": [warning.code for warning in status.warnings],
        "model": model if model != "unavailable" else "model_unavailable",
        "broker": None if state is DaemonState.OFFLINE else status.broker,
        "groups": [group for group, joined in status.groups.items() if joined],
        "instance": status.instance,
        "time": format_time(status.wall_time),
    }


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
        "digest": facts.digest,
        "lone_rows_padded": facts.lone_rows_padded,
        "same_ids_in_any_company": facts.same_ids_in_any_company,
        "logits": facts.logits,
        "logits_reason": facts.logits_reason,
        "response_formats": facts.response_formats,
        "response_formats_reason": facts.response_formats_reason,
        "kv_cache": facts.kv_cache,
        "kv_cache_reason": facts.kv_cache_reason,
        "speculation": "on" if facts.speculation else "off",
        "speculation_reason": facts.speculation_reason,
        "split_tokens": facts.split_tokens,
        "max_stall_kept": status.max_stall_kept,
        "chat": facts.chat,
        "load_seconds": round(facts.load_seconds, 3),
    }


def encode(document: Mapping[str, Any]) -> bytes:
    """The document as it goes on the wire."""
    # Fields without a value are null: templates of clients break on missing ones.
    return json.dumps(document, ensure_ascii=False).encode()


_NEVER_CUT = frozenset({"device", "instance", "state", "ready", "time", "status", "code"})
_SHORT_TEXT = 32
"""Characters up to which a text is not shortened."""


def fit(document: Mapping[str, Any], room: int | None) -> tuple[bytes, tuple[str, ...]] | None:
    """The encoded document in `room` bytes, and which of its fields were cut for that; None where they are too few.

    The longest texts are shortened first, then whole fields become null, the largest first.
    """
    payload = encode(document)
    if room is None or len(payload) <= room:
        return payload, ()
    smaller, cut = copy.deepcopy(dict(document)), dict[str, None]()
    while len(payload) > room:
        name = _shorten_text(smaller) or _drop_field(smaller)
        if name is None:
            return None
        cut[name] = None
        payload = encode(smaller)
    return payload, tuple(cut)


def _shorten_text(document: Document) -> str | None:
    """Halve the longest text; returns the name of its field, None where all are short."""
    texts = [
        (len(inner[key]), name, key, inner)
        for name in document.keys() - _NEVER_CUT
        for inner in (document, *([document[name]] if isinstance(document[name], dict) else ()))
        for key in (inner if inner is not document else (name,))
        if isinstance(inner[key], str) and len(inner[key]) > _SHORT_TEXT
    ]
    if not texts:
        return None
    length, name, key, inner = max(texts, key=lambda text: text[:2])
    inner[key] = inner[key][: length // 2 - 1] + "…"
    return name


def _drop_field(document: Document) -> str | None:
    """Let the largest field be null; returns its name, None where no field is left."""
    names = [name for name in document.keys() - _NEVER_CUT if document[name] is not None]
    if not names:
        return None
    name = max(names, key=lambda name: (len(encode({name: document[name]})), name))
    document[name] = None
    return name
