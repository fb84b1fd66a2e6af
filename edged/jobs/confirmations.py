"""Which publications of results the broker has confirmed, until that is on disk. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from edged.jobs.records import Delivery


class Confirmations:
    """A job's result is delivered once all its publications are."""

    def __init__(self) -> None:
        self.due = 0
        """Publications that the broker has not confirmed."""
        self._open: Counter[int] = Counter()
        """The same for each job, by its number."""
        self._heard: set[int] = set()
        """Of these jobs, those whose result was confirmed in another place."""
        self._confirmed: list[Delivery] = []

    def __bool__(self) -> bool:
        """Whether a confirmation is not on disk yet."""
        return bool(self._confirmed)

    def expect(self, deliveries: Iterable[Delivery]) -> None:
        """Wait for the confirmations of these."""
        numbers = [delivery.number for delivery in deliveries]
        self._open.update(numbers)
        self.due += len(numbers)

    def finish(self, delivery: Delivery, heard: bool = False) -> None:
        """Wait for this one no more. `heard`: the broker has taken it."""
        self._open[delivery.number] -= 1
        self.due -= 1
        self._confirmed.append(delivery)
        if heard:
            self._heard.add(delivery.number)

    def is_heard(self, number: int) -> bool:
        """Whether the broker has taken the job's result in a place, while others still wait for it."""
        return number in self._heard

    def to_commit(self) -> tuple[list[int], list[int]]:
        """(waiters that have their answer, jobs all of whose publications are confirmed)."""
        waiters = [delivery.waiter for delivery in self._confirmed if delivery.waiter is not None]
        numbers = dict.fromkeys(delivery.number for delivery in self._confirmed)
        return waiters, [number for number in numbers if not self._open[number]]

    def committed(self) -> None:
        """All of them are on disk."""
        for number in {delivery.number for delivery in self._confirmed if not self._open[delivery.number]}:
            del self._open[number]
            self._heard.discard(number)
        self._confirmed.clear()
