"""Desired documents as they come: each is checked and taken, or refused with a reason that stays known."""

from __future__ import annotations

import structlog

from edged.faults import Fault
from edged.rollout.desired import Received, RefusedError, read_desired
from edged.rollout.precedence import Documents
from edged.rollout.reported import Refused
from edged.rollout.signing import check_allowed
from edged.settings.fleet import FleetSettings

log = structlog.get_logger(__name__)


class Intake:
    """Takes documents, and holds which ones are refused now, by their target."""

    def __init__(self, fleet: FleetSettings) -> None:
        self._fleet = fleet
        self.refused: dict[str, Refused] = {}

    def take(self, documents: Documents, topic: str, payload: bytes, target: str) -> Documents:
        """The documents with what this message says; the same ones where it is refused."""
        received = None
        try:
            if payload:
                received = read_desired(payload, target)
                check_allowed(received, topic, self._fleet)
                documents = documents.take(received)
            else:
                documents = documents.withdraw(target)
        except RefusedError as error:
            self._refuse(target, received, error.fault)
        else:
            self.refused.pop(target, None)
        return documents

    def _refuse(self, target: str, received: Received | None, fault: Fault) -> None:
        desired = None if received is None else received.desired
        rollout, sequence = (None, None) if desired is None else (desired.rollout, desired.sequence)
        self.refused[target] = Refused(target, fault, rollout, sequence)
        log.warning(
            "desired_refused", target=target, rollout=rollout, code=fault.code, reason=fault.message, hint=fault.hint
        )
