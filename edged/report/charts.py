"""Line charts of the last hour as SVG paths. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEIGHT = 100
"""Units of the drawing from the bottom to the top; one unit to the right for each value."""


SHOWN = (
    ("generated_tokens_per_second", "Tokens made", "tokens/s", 1.0),
    ("prompt_tokens_per_second", "Prompt tokens read", "tokens/s", 1.0),
    ("queued", "Jobs that wait", "jobs", 2.0),
    ("running", "Jobs that run", "jobs", 2.0),
    ("temperature_celsius", "Temperature", "°C", 90.0),
    ("power_watts", "Power", "W", 5.0),
)
"""The series of the history that are drawn: name, title, unit, and the least upper edge of its chart."""


@dataclass(frozen=True)
class Chart:
    """A series ready to be drawn."""

    title: str
    unit: str
    values: Sequence[float | None]
    path: str
    """An SVG path with a line for each run of known values."""
    width: int
    top: float
    """The value at the upper edge; 0 is at the lower one."""
    now: float | None
    highest: float
    lowest: float


def hour(history: Mapping[str, Any]) -> list[Chart]:
    """The charts of an overview's history; none of what the board does not measure."""
    found = (chart(title, unit, history[name], least) for name, title, unit, least in SHOWN)
    return [one for one in found if one is not None]


def chart(title: str, unit: str, values: Sequence[float | None], least_top: float = 1.0) -> Chart | None:
    """The chart of `values`, the oldest first; None where all are unknown. `least_top`: the least upper edge."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    top = round_up(max(*known, least_top))
    now = next((value for value in reversed(values[-2:]) if value is not None), None)
    return Chart(title, unit, values, path(values, top), max(1, len(values) - 1), top, now, max(known), min(known))


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 … and the same below 1; `value` is above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if value <= step * power * (1 + 1e-9)))


def path(values: Sequence[float | None], top: float) -> str:
    """An SVG path: x is the place in `values`, y is HEIGHT at 0 and 0 at `top`; of a level run, its ends alone."""
    heights = [None if value is None else round(HEIGHT * (1 - value / top), 1) for value in values]
    parts = []
    for x, y in enumerate(heights):
        if y is None:
            continue
        before = heights[x - 1] if x else None
        after = heights[x + 1] if x + 1 < len(heights) else None
        if before is None:
            parts.append(f"M{x} {y:g}")
            if after is None:
                parts.append("h0")  # a dot, by its round cap
        elif not before == y == after:
            parts.append(f"L{x} {y:g}")
    return "".join(parts)
