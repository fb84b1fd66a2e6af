"""Keeps the newest lines of the log in memory, for an operator who asks from afar."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

MOST_LINES = 1000
LONGEST = 500
"""Characters that are kept of a text."""
_LEVELS = ("debug", "info", "warning", "error", "critical")


class LogMemory:
    """Any thread may add and read."""

    def __init__(self) -> None:
        self._lines: deque[dict[str, Any]] = deque(maxlen=MOST_LINES)
        self._lock = threading.Lock()

    def add(self, level: str, fields: Mapping[str, Any]) -> None:
        """Keep a line that was written. Tracebacks are left out, since they hold much more than the line."""
        moment = datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds")
        level = "error" if level == "exception" else level
        line = {"time": moment.replace("+00:00", "Z"), "level": level}
        line |= {name: _kept(value) for name, value in fields.items() if name not in ("exc_info", *line)}
        with self._lock:
            self._lines.append(line)

    def newest(self, count: int, level: str) -> list[dict[str, Any]]:
        """The newest `count` lines of this level and above, the oldest of them first."""
        least = _LEVELS.index(level)
        with self._lock:
            found = [line for line in self._lines if _LEVELS.index(line["level"]) >= least]
        return found[-count:]


def _kept(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_kept(one) for one in value[:100]]
    return str(value)[:LONGEST]
