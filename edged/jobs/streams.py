"""Publishes answers piece by piece while they are made; pieces that come too fast are joined."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class _Stream:
    """The pieces of one answer. `due`: when the next one may leave, CLOCK_MONOTONIC seconds."""

    id: str
    due: float = -math.inf
    published: int = 0
    held: str = ""


class Streams:
    """The answers that are streamed. No text is held for longer than the time between two pieces."""

    def __init__(self, publish: Callable[[str, int, str], None], pieces_per_second: float) -> None:
        """`publish` takes a job's id, the piece's number from 0 on, and its text. `pieces_per_second`: of one job."""
        self._publish = publish
        self._interval = 1 / pieces_per_second
        self._streams: dict[int, _Stream] = {}

    @property
    def due_in(self) -> float:
        """Seconds until held text is due; infinite where none is held."""
        due = min((stream.due for stream in self._streams.values() if stream.held), default=math.inf)
        return due - time.monotonic()

    def add(self, number: int, id: str, text: str) -> None:
        """Take new text of the job with this number: it leaves at once if no piece left just before."""
        stream = self._streams.setdefault(number, _Stream(id))
        stream.held += text
        self._send_if_due(stream)

    def flush(self) -> None:
        """Publish the text that is due."""
        for stream in self._streams.values():
            self._send_if_due(stream)

    def end(self, number: int) -> None:
        """Publish the rest of a job's text, before its result. Its next piece, if it runs again, is number 0."""
        stream = self._streams.pop(number, None)
        if stream is not None and stream.held:
            self._publish(stream.id, stream.published, stream.held)

    def _send_if_due(self, stream: _Stream) -> None:
        now = time.monotonic()
        if stream.held and now >= stream.due:
            self._publish(stream.id, stream.published, stream.held)
            stream.held, stream.due, stream.published = "", now + self._interval, stream.published + 1
