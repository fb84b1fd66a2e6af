"""The retained documents of the device: the newest version of each, cut to what the broker takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from edged.faults import Fault
from edged.jobs.poison import SMALL_BYTES
from edged.mqtt.connection_faults import document_cut, document_refused
from edged.report.documents import fit

Document = Mapping[str, Any]
PACKET_OVERHEAD = 16
"""Bytes of a PUBLISH beside topic and payload, at most."""

log = structlog.get_logger(__name__)


class RetainedDocuments:
    """By topic. What is due is published in the order in which it became due."""

    def __init__(self) -> None:
        self._newest: dict[str, Document] = {}
        self._whole: set[str] = set()
        self._due: dict[str, None] = {}
        self._confirmed: set[str] = set()
        self._rooms: dict[str, int] = {}
        self._cut: dict[str, Fault] = {}
        self.maximum_packet_size: int | None = None
        """Bytes that the broker announced as its limit."""

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

    def again(self, topic: str) -> None:
        """Publish the newest version once more."""
        if topic in self._newest:
            self._due[topic] = None

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

    def has_confirmed(self, topic: str) -> bool:
        """Whether the broker has the newest version, by a PUBACK of this connection."""
        return topic in self._confirmed

    def payload(self, topic: str) -> bytes | None:
        """The document as it is to be published; None where it cannot be made small enough."""
        document = self._newest[topic]
        if not document:
            return b""  # MQTT 5 §3.3.1.3
        fitted = fit(document, self._room(topic))
        if fitted is None or (fitted[1] and topic in self._whole):
            self._tell(topic, document_refused(topic, "it is too large for the broker"))
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

    def too_large(self, topic: str, size: int) -> None:
        """The broker does not take the document at this size, in bytes: publish half of it."""
        self._rooms[topic] = size // 2
        self.again(topic)

    def _room(self, topic: str) -> int | None:
        limits = [self._rooms[topic]] if topic in self._rooms else []
        if self.maximum_packet_size is not None:
            limits.append(self.maximum_packet_size - len(topic.encode()) - PACKET_OVERHEAD)
        return min(limits, default=None)

    def _tell(self, topic: str, warning: Fault) -> None:
        if self._cut.get(topic) != warning:
            log.warning("document_too_large", topic=topic, code=warning.code, reason=warning.message, hint=warning.hint)
        self._cut[topic] = warning
