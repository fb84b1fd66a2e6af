"""What the devices of a fleet last said: status, info and heartbeat of each, and whether it still talks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from edged.fleet.fields import seconds_of
from edged.mqtt.topics import is_id
from edged.report.documents import HEALTH_EXPIRY_SECONDS

Channel = Literal["status", "info", "health"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)
MOST_BYTES = 1 << 16
"""Longest document that is read."""
MOST_BOARDS = 5000
"""Devices that are kept; further ones are not taken up."""
STALE_SECONDS = 120.0
"""A device is taken for down when its last word is older: four heartbeats of the default."""
FORGET_SECONDS = 7 * 86400.0
"""A device that is down is dropped when its last word is older: as long as the broker keeps its session."""

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Board:
    """One device. `heard`: CLOCK_MONOTONIC seconds, `heard_wall`: seconds since the epoch, by this machine's clocks."""

    documents: Mapping[Channel, Document] = field(default_factory=dict)
    heard: float = 0.0
    heard_wall: float = 0.0
    up: bool = True
    """Whether it is online and talks."""
    clock_offset: float | None = None
    """Seconds that its clock was ahead when its last heartbeat came."""
    said: float | None = None
    """When it last said something, in seconds since the epoch by this machine's clock, also where only the broker's
    copy of its last heartbeat was heard; None where nothing tells."""

    def of(self, channel: Channel) -> Document:
        """The last document of a channel; empty where there is none."""
        return self.documents.get(channel, {})


class Boards:
    """All devices. The connection's thread tells; any thread may read."""

    def __init__(
        self,
        root: str,
        *,
        stale: float = STALE_SECONDS,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`root`: the prefix of the topics."""
        self._prefix = f"{root}/device/"
        self._stale = stale
        self._now = now
        self._wall = wall
        self._boards: dict[str, Board] = {}
        self._connected_at: float | None = None
        self._lock = threading.Lock()
        self.taken = 0
        """Documents that were read."""
        self.refused = 0
        """Messages that were none, or of a device too many."""

    @property
    def connected(self) -> bool:
        """Whether the broker delivers: otherwise nothing is known of any device."""
        return self._connected_at is not None

    def connect(self) -> None:
        """The broker delivers from now on: what devices said meanwhile was missed, and is held against none."""
        self._connected_at = self._now()

    def disconnect(self) -> None:
        """The connection to the broker is lost."""
        self._connected_at = None

    def take(self, topic: str, payload: bytes, retained: bool, expiry: int | None = None) -> None:
        """Take a message. A device says it itself where it is not `retained`; an empty one takes its document away.

        `expiry`: what the broker has left of the Message Expiry Interval, in seconds.
        """
        device, _, channel = topic.removeprefix(self._prefix).partition("/")
        if not topic.startswith(self._prefix) or not is_id(device) or channel not in CHANNELS:
            self.refused += 1
            return
        document = _read(payload)
        with self._lock:
            known = self._boards.get(device)
            if document is None or (known is None and (not payload or len(self._boards) >= MOST_BOARDS)):
                self.refused += bool(payload)
                return
            self.taken += 1
            board = known or Board(heard=self._now(), heard_wall=self._wall())
            documents = {**board.documents, channel: document}
            if not payload:
                del documents[channel]
                if not documents:
                    del self._boards[device]
                    return
            board = replace(board, documents=documents)
            if not retained and payload:
                board = replace(board, heard=self._now(), heard_wall=self._wall(), said=self._wall())
                if channel == "health":
                    board = replace(board, clock_offset=self._offset(document))
            elif payload and channel == "health" and (said := self._said(document, expiry)) is not None:
                board = replace(board, said=said if board.said is None else max(said, board.said))
            self._boards[device] = board

    def all(self) -> dict[str, Board]:
        """Every device by name, with `up` as of now. Those that were down for too long are dropped."""
        now, connected = self._now(), self._connected_at
        with self._lock:
            for name in [name for name, board in self._boards.items() if now - board.heard > FORGET_SECONDS]:
                del self._boards[name]
            boards = dict(self._boards)
        since = connected if connected is not None else now

        def is_up(board: Board) -> bool:
            return board.of("status").get("state") != "offline" and now - max(board.heard, since) <= self._stale

        return {name: replace(board, up=is_up(board)) for name, board in sorted(boards.items())}

    def _offset(self, document: Document) -> float | None:
        told = seconds_of(document.get("time"))
        return None if told is None else told - self._wall()

    def _said(self, document: Document, expiry: int | None) -> float | None:
        """When a heartbeat that the broker kept was said; by the device's clock where its expiry does not tell."""
        if expiry is not None and expiry <= HEALTH_EXPIRY_SECONDS:
            return self._wall() - (HEALTH_EXPIRY_SECONDS - expiry)
        told = seconds_of(document.get("time"))
        return None if told is None else min(told, self._wall())


def _read(payload: bytes) -> Document | None:
    """The JSON object of a payload, empty of an empty one; None where it is none or too long."""
    if not payload:
        return {}
    if len(payload) > MOST_BYTES:
        return None
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
