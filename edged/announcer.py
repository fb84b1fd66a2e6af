"""Announces the daemon's status: retained MQTT documents and systemd's status line when they change, and heartbeats."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from edged.discovery import Discovery
from edged.jobs.outbox import Outbox
from edged.machine.board import Board
from edged.machine.sensors.readings import Readings
from edged.machine.storage import mount_of, swaps_on_card
from edged.mqtt.link import Link
from edged.report.documents import (
    HEALTH_EXPIRY_SECONDS,
    encode,
    health_document,
    info_document,
    offline_document,
    status_document,
)
from edged.report.supervisor import Supervisor
from edged.settings import Settings
from edged.status import Status, sentence

log = structlog.get_logger(__name__)


class Announcer:
    """Publishes through the outbox, the link and the supervisor. Main thread only."""

    def __init__(
        self,
        link: Link,
        outbox: Outbox,
        supervisor: Supervisor,
        settings: Settings,
        board: Board,
        readings: Callable[[], Readings],
        device: str,
    ) -> None:
        self._link = link
        self._outbox = outbox
        self._supervisor = supervisor
        self._settings = settings
        self._board = board
        self._readings = readings
        self._device = device
        self._ready_sent = False
        self._throttled: set[str] = set()
        self._published_status: tuple[object, ...] | None = None
        self._published_info: tuple[object, ...] | None = None
        self._discovery = Discovery(outbox, link.topics, settings, board)

    def publish_again(self) -> None:
        """Publish the retained documents at the next turn, changed or not: the broker may not have them as they are."""
        self._published_status = self._published_info = None
        self._discovery.publish_again()

    def publish_changes(self, status: Status) -> None:
        """Publish the documents that changed; while the broker is away, they are tried again at the next call."""
        topics = self._link.topics
        info = (status.model.state, status.model.reason, bool(status.tokens_per_second), status.max_stall_kept)
        if info != self._published_info:
            document = info_document(self._device, self._settings, self._board, status)
            if self._outbox.announce(topics.info, document):
                self._published_info = info
        held = f", held back for {', '.join(status.governor.reasons)}" if status.governor.reasons else ""
        self._supervisor.status((sentence(status.faults) or f"serving {status.model.name}") + held)
        if status.model.state != "loading" and not self._ready_sent:
            self._ready_sent = True
            self._supervisor.ready()
        news = (status.state, status.faults, status.warnings, tuple(status.groups.items()))
        if news != self._published_status and self._outbox.announce(
            topics.status, status_document(self._device, status)
        ):
            self._published_status = news
        self._discovery.publish()

    def publish_offline(self, status: Status, reason: str) -> bool:
        """Publish the status `offline`; False where the link does not take it now."""
        return self._outbox.announce_last(self._link.topics.status, offline_document(self._device, status, reason))

    def heartbeat(self, status: Status) -> None:
        """Publish the health document, and log when the board starts to be throttled."""
        readings = self._readings()
        throttled = set(readings.throttled(time.monotonic()))
        if throttled - self._throttled:
            log.warning("board_throttled", reasons=sorted(throttled))
        self._throttled = throttled
        document = health_document(self._device, readings, status)
        self._link.publish(
            self._link.topics.health, encode(document), qos=0, retain=True, expiry_seconds=HEALTH_EXPIRY_SECONDS
        )


def warn_about_storage(state_dir: Path, root: Path) -> None:
    """Log what loses jobs at a power cut or wears out the card, though everything works. `root`: of the machine."""
    mount = mount_of(state_dir.resolve(), root)
    if mount is not None and mount.volatile:
        log.warning("state_dir_volatile", kind=mount.kind, hint="files in memory are lost at a power cut")
    for swap in swaps_on_card(root):
        log.warning("memory_swapped_to_card", place=swap, hint="zram does no harm")
