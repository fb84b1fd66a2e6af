"""Numbers, times and foreign texts as people read them."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def figure(value: float | None) -> str:
    """A number with three significant digits at most where it is small; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float | None) -> str:
    """Seconds for people, by their two largest units; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.1f} s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes:.0f} min {seconds % 60:.0f} s"
    if days < 1:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{days:.0f} d {hours % 24:.0f} h"


def ago(time: str, now: str) -> str:
    """How long before `now` a `time` was, both RFC 3339; the clock may have been set in between."""
    seconds = between((time, now))
    if seconds is None or seconds < 1:
        return "now"
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds // each:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def between(times: tuple[str, str | None]) -> float | None:
    """Seconds from one time to another, both RFC 3339; None before the second one, or where the clock was set back."""
    first, last = (None if time is None else datetime.fromisoformat(time.replace("Z", "+00:00")) for time in times)
    if first is None or last is None or last < first:
        return None
    return (last - first).total_seconds()


def printable(value: Any) -> Any:
    """A JSON value whose texts cannot steer a terminal: a broker's words, for example, are in some of them."""
    if isinstance(value, dict):
        return {key: printable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [printable(inner) for inner in value]
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in value)
    return value
