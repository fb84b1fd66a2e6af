"""Configures structlog: lines on a terminal, JSON elsewhere, fields for journald.

Warnings and errors are counted by their event, so that each of them moves a metric too. docs/log.md lists all events.
No caller logs a prompt or a secret.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from edged.log_limit import LineLimit
from edged.log_memory import LogMemory

JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""journald's PRIORITY, in the numbers of syslog(3)."""
_COUNTED = {"warning", "error"}
_LONGEST = 500
"""Characters that are kept of a reason or a hint."""


@dataclass(frozen=True)
class Noted:
    """A warning or an error of the log: how often it came since the process began, and what it said last."""

    event: str
    level: str
    count: int
    time: float
    """Of the last one, in seconds since the epoch."""
    reason: str = ""
    hint: str = ""


_noted: dict[tuple[str, str], Noted] = {}
"""By event and level, the one that came last at the end."""
_lock = threading.Lock()
memory = LogMemory()
"""The lines since the process began, at `log.level` and above."""
_limit = LineLimit(time.monotonic)


def noted() -> tuple[Noted, ...]:
    """The warnings and errors since the process began, at any `log.level`; the latest first.

    Events are constants of the code, so there are few.
    """
    with _lock:
        return tuple(reversed(_noted.values()))


def _note(event: str, level: str, fields: structlog.typing.EventDict) -> None:
    reason, hint = (str(fields.get(name) or "")[:_LONGEST] for name in ("reason", "hint"))
    with _lock:
        known = _noted.pop((event, level), None)
        count = 1 + (known.count if known else 0)
        _noted[event, level] = Noted(event, level, count, time.time(), reason, hint)


def tell_held(*, all: bool = False) -> None:
    """Write what a storm of one event held back, once it is over; `all`: at once. To be called now and then."""
    for level, fields in _limit.held(all=all):
        getattr(structlog.get_logger(), level)(**fields)


def configure(level: str, format: Literal["auto", "json", "console"]) -> None:
    """Log to stderr from `level` upwards; `auto` is console on a terminal and JSON elsewhere.

    Where stderr goes to journald, it gets the same JSON and each field besides, for `journalctl EDGED_JOB=…`.
    """
    global _limit
    _limit = LineLimit(time.monotonic)
    least: int = getattr(logging, level.upper())

    def count(_logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        again = "suppressed" in event  # by tell_held()
        if name in _COUNTED and not again:
            _note(event["event"], name, event)
        if getattr(logging, name.upper()) < least or not (again or _limit.take(name, event)):
            raise structlog.DropEvent
        memory.add(name, event)
        return event

    processors: list[structlog.typing.Processor] = [
        count,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    if format == "console" or (format == "auto" and sys.stderr.isatty()):
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        processors.append(structlog.processors.format_exc_info)
        if stderr_is_journal():
            processors.append(_render_for_journal)
            factory = JournalLogger
        else:
            processors.append(_render_json)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(min(least, logging.WARNING)),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )


def stderr_is_journal() -> bool:
    """Whether systemd connected stderr to journald (systemd.exec(5), JOURNAL_STREAM) and journald's socket exists."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}" and Path(JOURNAL).exists()


class JournalLogger:
    """Sends entries in journald's native protocol. Entries that journald does not take go to stderr."""

    def __init__(self, *_args: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def msg(self, line: str, fields: dict[str, str]) -> None:
        """Log `line`, and `fields` as fields of the entry."""
        entry = b"".join(_entry(name, value) for name, value in {"MESSAGE": line, **fields}.items())
        try:
            self._socket.sendto(entry, JOURNAL)
        except OSError:  # too large for a datagram, or journald is not running
            print(line, file=sys.stderr)

    debug = info = warning = error = critical = msg


_render_json = structlog.processors.JSONRenderer(ensure_ascii=False)


def _render_for_journal(logger: Any, name: str, event: structlog.typing.EventDict) -> tuple[tuple[()], dict[str, Any]]:
    fields = {"EDGED_" + re.sub(r"[^A-Z0-9_]", "_", key.upper()): str(value) for key, value in event.items()}
    fields |= {"PRIORITY": str(_PRIORITIES.get(name, 3)), "SYSLOG_IDENTIFIER": "edged"}
    return (), {"line": _render_json(logger, name, event), "fields": fields}


def _entry(name: str, value: str) -> bytes:
    """A field in the journal's native protocol: a value with a line break needs its length before it."""
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
