"""The last hour of a few figures, in memory: one value for each ten seconds."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from edged.machine.sensors.quantities import TEMPERATURE
from edged.machine.sensors.readings import Readings
from edged.status import Status

INTERVAL = 10
"""Seconds between two values."""
KEPT = 360
"""Values of each series: an hour."""
SERIES = (
    "generated_tokens_per_second",
    "prompt_tokens_per_second",
    "queued",
    "running",
    "temperature_celsius",
    "power_watts",
)

Series = dict[str, list[float | None]]


class History:
    """The main thread records; any thread reads."""

    def __init__(self, readings: Callable[[], Readings], now: Callable[[], float] = time.monotonic) -> None:
        """`readings` gives the last ones of the board's sensors."""
        self._readings = readings
        self._now = now
        self._values: deque[tuple[int, tuple[float | None, ...]]] = deque(maxlen=KEPT)
        """Number of the interval, and a value for each of SERIES."""
        self._lock = threading.Lock()
        self._before: tuple[float, int, int] | None = None
        """When the last values were recorded, and how many tokens were made and read by then."""

    def record(self, status: Status) -> None:
        """Note the figures of a snapshot, unless there are some of this interval already."""
        now = self._now()
        interval = int(now // INTERVAL)
        if self._values and self._values[-1][0] == interval:
            return
        made, read = status.generated_tokens, status.prompt_tokens
        before, self._before = self._before, (now, made, read)
        if before is None:
            speeds: tuple[float | None, float | None] = (None, None)
        else:
            seconds = now - before[0]
            speeds = (made - before[1]) / seconds, (read - before[2]) / seconds
        readings = self._readings()
        board = max(readings.of(TEMPERATURE, now).values(), default=None), readings.total
        with self._lock:
            self._values.append((interval, (*speeds, float(status.queued), float(status.running), *board)))

    def series(self) -> Series:
        """KEPT values of each series, the oldest first, up to the interval before this one; None: nothing is known."""
        with self._lock:
            known = dict(self._values)
        last = int(self._now() // INTERVAL)
        # This interval's values may be missing only because the main loop has not turned yet.
        intervals = range(last - KEPT, last) if last not in known else range(last - KEPT + 1, last + 1)
        nothing = (None,) * len(SERIES)
        rows = [known.get(interval, nothing) for interval in intervals]
        return {name: [_rounded(row[at]) for row in rows] for at, name in enumerate(SERIES)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
