"""Results that the broker does not take at their size: the next commit replaces each by a small one. Pure."""

from __future__ import annotations

from collections.abc import Collection

from edged.jobs.records import Delivery


class Replacements:
    """By the job's number: a result has one content, whatever places wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Delivery]] = {}
        """Their publications, which wait for the commit."""
        self._committing: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def add(self, delivery: Delivery) -> None:
        """Publish the small result here, once it is committed."""
        self._waiting.setdefault(delivery.number, []).append(delivery)

    def heard(self, number: int) -> list[Delivery]:
        """The large result was taken in another place, so it stays. Returns the publications that wait no more."""
        return self._waiting.pop(number, [])

    def to_commit(self, under_way: Collection[int]) -> list[int]:
        """Jobs to replace now; not those with a copy under way, which may yet be taken in its place."""
        self._committing = [number for number in self._waiting if number not in under_way]
        return self._committing

    def committed(self) -> list[Delivery]:
        """The small results are on disk. Returns the publications to make with them."""
        found = [delivery for number in self._committing for delivery in self._waiting.pop(number)]
        self._committing = []
        return found
