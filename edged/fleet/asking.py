"""What devices answer to a command, as it comes in (pure but for its lock)."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from typing import Any

from edged.fleet.boards import Boards

ENDED = ("successful", "failed")
"""The last states of a command."""
_MOST_BYTES = 65_536


class Answers:
    """Hears answers to one command beside all that devices say; told by the connection's thread."""

    def __init__(self, boards: Boards, root: str, command: str) -> None:
        """`command`: the end of its topics, `name/id`."""
        self._boards = boards
        self._prefix, self._suffix = f"{root}/device/", f"/cmd/{command}"
        self._heard: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def connect(self) -> None:
        self._boards.connect()

    def disconnect(self) -> None:
        self._boards.disconnect()

    def take(self, topic: str, payload: bytes, retained: bool, expiry: int | None = None) -> None:
        """Take a message of any topic."""
        if not topic.endswith(self._suffix):
            self._boards.take(topic, payload, retained, expiry)
            return
        device = topic.removeprefix(self._prefix).removesuffix(self._suffix)
        try:
            document = json.loads(payload[:_MOST_BYTES])
        except (ValueError, RecursionError):  # among them the removal of one
            return
        if topic.startswith(self._prefix) and isinstance(document, dict) and document.get("device") == device:
            with self._lock:
                self._heard[device] = document

    def all(self) -> dict[str, Mapping[str, Any]]:
        """The last answer of each device that has answered."""
        with self._lock:
            return dict(sorted(self._heard.items()))

    def ended(self, devices: Collection[str]) -> bool:
        """Whether each of these devices has given its last answer."""
        heard = self.all()
        return all(heard.get(device, {}).get("status") in ENDED for device in devices)
