"""Remembers the brokers where this device has had a session, so that a forgotten one is noticed after a restart."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import structlog

from edged.durable import write_durably

_log = structlog.get_logger(__name__)

_MOST = 64
"""Sessions that are remembered; the oldest go first."""
_BYTES = 64 << 10


class KnownSessions:
    """Addresses of brokers and client ids, kept in `file`; in memory alone where that is None. For any thread."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._sessions = _read(file) if file is not None else []

    def has(self, address: str, client_id: str) -> bool:
        """Whether this client once had a session at that broker."""
        with self._lock:
            return (address, client_id) in self._sessions

    def add(self, address: str, client_id: str) -> None:
        """Remember a session. The file is written only for one that is new; without it, the next start knows less."""
        with self._lock:
            if (address, client_id) in self._sessions:
                return
            self._sessions = [*self._sessions, (address, client_id)][-_MOST:]
            if self._file is None:
                return
            try:
                write_durably(self._file, json.dumps(self._sessions))
            except OSError as error:
                _log.warning("mqtt_sessions_not_kept", path=str(self._file), reason=error.strerror or str(error))


def _read(file: Path) -> list[tuple[str, str]]:
    """What the file holds; nothing where it is not one of ours, as after a power cut on a bad card."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(_BYTES))
        return [(str(address), str(client_id)) for address, client_id in found][-_MOST:]
    except (OSError, ValueError, TypeError):
        return []
