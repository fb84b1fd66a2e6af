"""Publishes the document for Home Assistant, and removes it where the settings no longer ask for it."""

from __future__ import annotations

import re
from pathlib import Path

import structlog

from edged.durable import write_durably
from edged.jobs.outbox import Outbox
from edged.machine.board import Board
from edged.mqtt.topics import Topics
from edged.report.discovery import discovery_document
from edged.settings import Settings

FILE = "discovery"
"""In state_dir: topics that may have a document of this device, one a line."""
_TOPIC = re.compile(r"[^+#\0]{1,200}/device/[A-Za-z0-9_-]{1,100}/config")

log = structlog.get_logger(__name__)


class Discovery:
    """Main thread only."""

    def __init__(self, outbox: Outbox, topics: Topics, settings: Settings, board: Board) -> None:
        self._outbox = outbox
        self._file = settings.state_dir / FILE
        self._known = _read(self._file)
        self._due: set[str] = set()
        self._topic: str | None = None
        self._document = {}
        if settings.mqtt.discovery_prefix is not None:
            id, self._topic = topics.discovery_id, topics.discovery(settings.mqtt.discovery_prefix)
            self._document = discovery_document(
                id, topics.device, board.model, status=topics.status, health=topics.health, info=topics.info
            )
            self._known.add(self._topic)
        self.publish_again()

    def publish_again(self) -> None:
        """The broker may be another one, or may have lost the document."""
        self._due = set(self._known)

    def publish(self) -> None:
        """Publish or remove what is due; forget what is known to be removed. To be called now and then."""
        if self._topic in self._due:
            self._keep()  # first: a document that is not noted here stays at the broker for ever
        for topic in sorted(self._due):
            if self._outbox.announce(topic, self._document if topic == self._topic else {}, whole=True):
                self._due.discard(topic)
        removed = {topic for topic in self._known if topic != self._topic and self._outbox.has_confirmed(topic)}
        if removed:
            self._known -= removed
            self._keep()

    def _keep(self) -> None:
        try:
            if _read(self._file) != self._known:
                write_durably(self._file, "".join(f"{topic}\n" for topic in sorted(self._known)))
        except OSError as error:
            hint = "make state_dir writable: else a document that you no longer want stays at the broker"
            log.warning("discovery_not_noted", reason=str(error), hint=hint)


def _read(file: Path) -> set[str]:
    try:
        return {line for line in file.read_text(encoding="utf-8").splitlines() if _TOPIC.fullmatch(line)}
    except (OSError, UnicodeDecodeError):
        return set()
