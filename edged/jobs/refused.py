"""Results that the broker refuses: each stays on disk, goes again at the next connection; a warning until then."""

from __future__ import annotations

from edged.faults import Fault
from edged.jobs.records import Delivery


class RefusedResults:
    """Publications on the jobs' own topics; refused replies are given up."""

    def __init__(self) -> None:
        self._next: list[Delivery] = []
        self._reasons: dict[Delivery, str] = {}

    @property
    def warnings(self) -> tuple[Fault, ...]:
        """The warning about those that the broker has not taken since; one for all of them."""
        for delivery, reason in self._reasons.items():
            message = f"the broker does not take the result of job {delivery.id}, which is kept: {reason}"
            return (Fault("mqtt_result_refused", message, "let the broker's access list and limits allow it"),)
        return ()

    def add(self, delivery: Delivery, reason: str, put_off: bool) -> None:
        """The broker refuses it; `put_off`: it does not go again at the next connection."""
        self._reasons[delivery] = reason
        if not put_off:
            self._next.append(delivery)

    def finish(self, delivery: Delivery) -> None:
        """The broker has it, or it is published no more."""
        self._reasons.pop(delivery, None)

    def take(self) -> list[Delivery]:
        """Those to be published on a new connection, in order."""
        due, self._next = self._next, []
        return due
