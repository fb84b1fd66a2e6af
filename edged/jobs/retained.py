"""The retained documents of the device: the newest version of each, cut to what the broker takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from edged.faults import Fault
from edged.jobs.poison import SMALL_BYTES
from edged.mqtt.connection_faults import document_cut, document_refused
from edged.report.documents import fit

Document = Mapping[str, Any]
PACKET_OVERHEAD = 16
"""Bytes of a PUBLISH beside topic and payload, at most."""
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 3600.0, 24 * 3600.0
"""Time after which a document that the broker did not take is published as a whole again; it doubles each time."""

log = structlog.get_logger(__name__)


@dataclass
class _Limit:
    """What the broker was found to take of one document."""

    room: int
    """Bytes; 0: it takes the document at no size."""
    until: float
    """When the whole document is tried again."""
    pause: float = FIRST_RETRY_SECONDS
    tried: bool = False
    """Whether it has been published as a whole since."""


class RetainedDocuments:
    """By topic. What is due is published in the order in which it became due. Times are CLOCK_MONOTONIC seconds."""

    def __init__(self) -> None:
        self._newest: dict[str, Document] = {}
        self._whole: set[str] = set()
        self._due: dict[str, None] = {}
        self._confirmed: set[str] = set()
        self._limits: dict[str, _Limit] = {}
        self._cut: dict[str, Fault] = {}
        self._broker: tuple[str, int | None] | None = None
        """The broker's address, and the bytes that it announced as its limit."""

    @property
    def due(self) -> tuple[str, ...]:
        """Topics whose document is to be published."""
        return tuple(self._due)

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """Documents that are published without some of their content, or not at all."""
        return tuple(self._cut.values())

    def put(self, topic: str, document: Document, whole: bool = False) -> None:
        """Publish this version of the document; an empty one removes what is retained there.

        `whole`: it is of no use if cut.
        """
        self._newest[topic] = document
        if whole:
            self._whole.add(topic)
        self._due[topic] = None
        self._confirmed.discard(topic)

    def forget(self, topic: str) -> None:
        """Keep nothing of this document, and publish it no more."""
        self._newest.pop(topic, None)
        self._due.pop(topic, None)
        self._limits.pop(topic, None)
        self._cut.pop(topic, None)
        self._whole.discard(topic)
        self._confirmed.discard(topic)

    def again(self, topic: str) -> None:
        """Publish the newest version once more."""
        if topic in self._newest:
            self._due[topic] = None

    def connected(self, broker: str, maximum_packet_size: int | None) -> bool:
        """A connection stands. What was found out holds for the same broker with the same announced limit.

        Returns whether it is another one.
        """
        before, self._broker = self._broker, (broker, maximum_packet_size)
        if self._broker != before:
            self._limits.clear()
        return self._broker != before

    def retry(self, now: float) -> None:
        """Publish as a whole again what the broker did not take so some time ago."""
        for topic, limit in self._limits.items():
            if now >= limit.until and not limit.tried:
                self.again(topic)

    def clear(self) -> None:
        """The connection is lost: nothing is due until it is put again."""
        self._due.clear()
        self._confirmed.clear()

    def published(self, topic: str) -> None:
        """The document was handed over."""
        self._due.pop(topic, None)

    def confirmed(self, topic: str) -> None:
        """The broker has the document."""
        if topic not in self._due:
            self._confirmed.add(topic)
        if topic in self._limits and self._limits[topic].tried:
            del self._limits[topic]

    def has_confirmed(self, topic: str) -> bool:
        """Whether the broker has the newest version, by a PUBACK of this connection."""
        return topic in self._confirmed

    def payload(self, topic: str, now: float) -> bytes | None:
        """The document as it is to be published; None where it cannot be made small enough."""
        document = self._newest[topic]
        if not document:
            return b""  # MQTT 5 §3.3.1.3
        fitted = fit(document, self._room(topic, now))
        if fitted is None or (fitted[1] and topic in self._whole):
            self._tell(topic, document_refused(topic, "the broker does not take it"))
            return None
        payload, cut = fitted
        if cut:
            self._tell(topic, document_cut(topic, cut))
        else:
            self._cut.pop(topic, None)
        return payload

    def probe(self, topic: str) -> bytes | None:
        """A small version of the document, None where there is none. The whole one is due again."""
        document = self._newest.get(topic)
        fitted = None if document is None else fit(document, SMALL_BYTES // 2)
        if fitted is None:
            return None
        self.again(topic)
        return fitted[0]

    def too_large(self, topic: str, size: int, now: float) -> None:
        """The broker does not take the document at this size, in bytes: publish half of it."""
        self._limit(topic, size // 2, now)
        self.again(topic)

    def not_allowed(self, topic: str, now: float) -> None:
        """The broker does not take the document at any size: publish none."""
        self._limit(topic, 0, now)
        self.again(topic)

    def _limit(self, topic: str, room: int, now: float) -> None:
        limit = self._limits.get(topic)
        if limit is None:
            self._limits[topic] = _Limit(room, now + FIRST_RETRY_SECONDS)
        elif limit.tried:  # it takes what it took before
            limit.pause = min(LONGEST_RETRY_SECONDS, limit.pause * 2)
            limit.until, limit.tried = now + limit.pause, False
        else:
            limit.room = min(limit.room, room)

    def _room(self, topic: str, now: float) -> int | None:
        rooms = []
        if (limit := self._limits.get(topic)) is not None:
            if now >= limit.until:
                limit.tried = True
            else:
                rooms.append(limit.room)
        announced = self._broker[1] if self._broker is not None else None
        if announced is not None:
            rooms.append(announced - len(topic.encode()) - PACKET_OVERHEAD)
        return min(rooms, default=None)

    def _tell(self, topic: str, warning: Fault) -> None:
        if self._cut.get(topic) != warning:
            log.warning("document_too_large", topic=topic, code=warning.code, reason=warning.message, hint=warning.hint)
        self._cut[topic] = warning
