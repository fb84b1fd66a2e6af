"""The fleet as Prometheus reads it: metrics in its text format, and targets for its HTTP service discovery."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edged.fleet.boards import Board, Boards
from edged.fleet.fields import object_of, pairs_of, seconds_of, texts_of
from edged.report.metric_table import ROWS

OWN = {
    "edged_fleet_up": ("gauge", "1 while the device is online and its heartbeats come; its other metrics go with it"),
    "edged_fleet_heard_timestamp_seconds": ("gauge", "When the device last said something"),
    "edged_fleet_clock_offset_seconds": ("gauge", "How far its clock was ahead when its last heartbeat came"),
    "edged_fleet_boards": ("gauge", "Devices that are known"),
    "edged_fleet_broker_connected": ("gauge", "1 while the broker delivers; without it, no device has any metric"),
    "edged_fleet_documents_total": ("counter", "Status, info and health documents that were read"),
    "edged_fleet_refused_messages_total": ("counter", "Messages that were no such document, or of a device too many"),
}
"""Metrics of the exporter itself: type and help."""
EXPORTED = (
    "edged_ready",
    "edged_jobs_queued",
    "edged_jobs_running",
    "edged_jobs_total",
    "edged_outbox_results",
    "edged_spool_bytes",
    "edged_certificate_expiry_timestamp_seconds",
    "edged_prompt_tokens_total",
    "edged_generated_tokens_total",
    "edged_faults_total",
    "edged_group_joined",
    "edged_model_info",
    "edged_build_info",
    "edged_board_info",
    "edged_board_temperature_celsius",
    "edged_board_throttled",
    "edged_board_power_watts",
    "edged_board_memory_bytes",
    "process_start_time_seconds",
)
"""Metrics of a device that its documents tell, by the names that the device itself has for them."""
_PROCESS = ("gauge", "Start time of the process since unix epoch in seconds.")
MOST_VALUES = 64
"""Most series of one metric of a device."""
_LONGEST = 200
"""Characters of a label's value."""
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|[0-9A-Fa-f:]{2,45}")
Labels = tuple[tuple[str, str], ...]


def metrics(boards: Boards) -> bytes:
    """Everything in Prometheus's text format. Devices have the label `instance`."""
    families: dict[str, dict[str, float]] = {}

    def add(name: str, labels: str, value: float) -> None:
        families.setdefault(name, {})[labels] = value

    known = boards.all() if boards.connected else {}
    for device, board in known.items():
        add("edged_fleet_up", f'{{instance="{device}"}}', board.up)
        add("edged_fleet_heard_timestamp_seconds", f'{{instance="{device}"}}', board.heard_wall)
        if not board.up:
            continue
        if board.clock_offset is not None:
            add("edged_fleet_clock_offset_seconds", f'{{instance="{device}"}}', board.clock_offset)
        count: dict[str, int] = {}
        for name, labels, value in _values(board):
            count[name] = count.get(name, 0) + 1
            if count[name] <= MOST_VALUES:
                more = "".join(f',{key}="{_escaped(text)}"' for key, text in labels)
                add(name, f'{{instance="{device}"{more}}}', value)
    add("edged_fleet_boards", "", len(known))
    add("edged_fleet_broker_connected", "", boards.connected)
    add("edged_fleet_documents_total", "", boards.taken)
    add("edged_fleet_refused_messages_total", "", boards.refused)
    return "".join(_family(name, found) for name, found in families.items()).encode()


def targets(boards: Boards) -> bytes:
    """The devices whose HTTP endpoint other machines reach, as Prometheus's http_sd_config reads them."""
    found = []
    for device, board in boards.all().items():
        http = board.of("info").get("http")
        if not isinstance(http, dict):
            continue
        host, port = http.get("host"), http.get("port")
        if not isinstance(host, str) or not _HOST.fullmatch(host) or not isinstance(port, int) or not 0 < port < 65536:
            continue
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        labels = {"instance": device, "__scheme__": "https" if http.get("tls") is True else "http"}
        found.append({"targets": [place], "labels": labels})
    return json.dumps(found).encode() + b"\n"


def _values(board: Board) -> Iterator[tuple[str, Labels, float]]:
    """Every metric of a device that its documents tell, without those that make no sense."""
    for name, labels, value in (*_of_health(board.of("health")), *_of_status(board), *_of_info(board.of("info"))):
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield name, labels, float(value)


def _of_health(health: Mapping[str, Any]) -> Iterator[tuple[str, Labels, Any]]:
    yield "edged_ready", (), health.get("ready")
    yield "edged_jobs_queued", (), health.get("queued")
    yield "edged_jobs_running", (), health.get("running")
    yield "edged_outbox_results", (), health.get("outbox")
    yield "edged_spool_bytes", (), health.get("spool_bytes")
    yield "edged_board_memory_bytes", (("part", "available"),), health.get("memory_available_bytes")
    for name, label, key in (
        ("edged_board_temperature_celsius", "zone", "temperature_celsius"),
        ("edged_board_power_watts", "rail", "power_watts"),
    ):
        for text, value in pairs_of(health.get(key)):
            yield name, ((label, text),), value
    for text, value in pairs_of(health.get("certificates")):
        yield "edged_certificate_expiry_timestamp_seconds", (("certificate", text),), seconds_of(value)
    for reason in texts_of(health.get("throttled")):
        yield "edged_board_throttled", (("reason", reason),), 1
    counters = health.get("counters")
    if isinstance(counters, dict):
        yield "edged_prompt_tokens_total", (), counters.get("prompt_tokens")
        yield "edged_generated_tokens_total", (), counters.get("generated_tokens")
        for state, value in pairs_of(counters.get("jobs")):
            yield "edged_jobs_total", (("state", state),), value
        faults = counters.get("faults")
        for fault in faults if isinstance(faults, list) else ():
            if isinstance(fault, dict):
                labels = (("event", str(fault.get("event"))), ("level", str(fault.get("level"))))
                yield "edged_faults_total", labels, fault.get("count")


def _of_status(board: Board) -> Iterator[tuple[str, Labels, Any]]:
    joined = set(texts_of(board.of("status").get("groups")))
    for group in texts_of(board.of("info").get("groups")):
        yield "edged_group_joined", (("group", group),), float(group in joined)


def _of_info(info: Mapping[str, Any]) -> Iterator[tuple[str, Labels, Any]]:
    model, board, versions = (object_of(info.get(key)) for key in ("model", "board", "versions"))
    if model:
        reason = model.get("execution_provider_reason") or model.get("reason")
        parts = {"name": model.get("name"), "state": model.get("state"), "reason": reason}
        parts["execution_provider"] = model.get("execution_provider")
        yield "edged_model_info", tuple((key, str(text or "")) for key, text in parts.items()), 1
    if board:
        yield "edged_board_info", tuple((key, str(board.get(key) or "")) for key in ("kind", "model")), 1
    if versions:
        yield "edged_build_info", (("version", str(versions.get("edged") or "")),), 1
    yield "process_start_time_seconds", (), seconds_of(info.get("started"))


def _escaped(text: str) -> str:
    return text[:_LONGEST].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, series: Mapping[str, float]) -> str:
    if name in OWN:
        kind, text = OWN[name]
    elif name in ROWS:
        kind, text = ROWS[name].kind, ROWS[name].help
    else:
        kind, text = _PROCESS
    kind = "gauge" if kind == "info" else kind
    text = text.replace("\\", "\\\\").replace("\n", " ")
    lines = (f"{name}{labels} {float(value)!r}\n" for labels, value in series.items())
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(lines)
