"""The promises of the contract that do not hold on one connection: kept for the status, and logged once."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from edged.faults import Fault
from edged.mqtt.connection_faults import SUBSCRIPTION_REFUSED, document_refused

_log = structlog.get_logger(__name__)


class BrokenPromises:
    """Changed by the connection's thread alone."""

    def __init__(self, connection: str, log: bool) -> None:
        self.warnings: tuple[Fault, ...] = ()
        """Those of the present or latest connection. Any thread may read them."""
        self._connection = connection
        self._log = log
        self._granted: tuple[Fault, ...] = ()
        self._others: tuple[Fault, ...] = ()
        self._refused_documents: set[str] = set()
        self._logged: frozenset[Fault] = frozenset()

    def connected(self, granted: tuple[Fault, ...], others: Sequence[Fault]) -> None:
        """A connection stands. `granted`: what is wrong with what the broker grants on it."""
        self._refused_documents.clear()
        self._others = tuple(others)
        self.changed(granted)

    def changed(self, granted: tuple[Fault, ...]) -> None:
        """The subscriptions changed. Log what was not logged at the change before."""
        self._granted = granted
        self.warnings = (*self._granted, *self._others)
        for warning in self.warnings:
            if warning in self._logged or not self._log:
                continue
            code, reason, hint = warning.code, warning.message, warning.hint
            if code == SUBSCRIPTION_REFUSED:
                _log.error("mqtt_subscription_refused", connection=self._connection, reason=reason, hint=hint)
            else:
                _log.warning("mqtt_promise_broken", connection=self._connection, code=code, reason=reason, hint=hint)
        self._logged = frozenset(self.warnings)

    def document_refused(self, topic: str, reason: str) -> None:
        """The broker refuses the document that is published to this topic."""
        if topic not in self._refused_documents:  # one warning for each topic: the reason may hold a size
            self._refused_documents.add(topic)
            self._others = (*self._others, document_refused(topic, reason))
            self.changed(self._granted)
