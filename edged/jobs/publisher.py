"""What the outbox publishes through, and what it publishes once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol


class Publisher(Protocol):
    """The part of the link that the outbox needs."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        token: Hashable | None = None,
        correlation: bytes | None = None,
        alone: bool = False,
    ) -> bool:
        """Hand over a publication; False when it cannot be taken now."""


class Notice(NamedTuple):
    """A publication that is not kept on disk: an event, or the refusal of a job."""

    topic: str
    payload: bytes
    correlation: bytes | None = None
