"""The table of a fleet: a line for each device."""

from __future__ import annotations

from collections.abc import Sequence

from edged.fleet.summary import Summary
from edged.report.words import figure, printable

COLUMNS = ("device", "state", "why", "model", "digest", "edged", "queue", "runs", "tok/s", "°C", "W", "heard")
RIGHT = frozenset({"queue", "runs", "tok/s", "°C", "W", "heard"})
DIGEST = 12
"""Hex digits of a package's digest that are shown."""
_WHY = 60
"""Characters of a reason that are shown."""


def cells(summary: Summary, now: float) -> tuple[str, ...]:
    """What stands in the columns. `now`: seconds since the epoch."""
    state = "not ready" if summary.state == "online" and not summary.ready else summary.state
    return tuple(
        printable(text)
        for text in (
            summary.device,
            "ready" if summary.ready else state,
            why(summary),
            summary.model or "–",
            (summary.digest or "–")[:DIGEST],
            summary.version or "–",
            figure(summary.queued),
            figure(summary.running),
            figure(summary.tokens_per_second),
            figure(summary.temperature_celsius),
            figure(summary.power_watts),
            heard(summary, now),
        )
    )


def why(summary: Summary) -> str:
    """Codes of what is wrong; of a device that is offline its reason."""
    if summary.state == "offline":
        return _shortened(summary.reason or "–")
    codes = summary.warnings if summary.ready else summary.faults
    return _shortened(", ".join((*codes, *summary.limited)) or "–")


def heard(summary: Summary, now: float) -> str:
    """How long ago the device was heard."""
    if summary.heard is None:
        return "–"
    seconds = max(0.0, now - summary.heard)
    for unit, each in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * each:
            return f"{seconds // each:.0f} {unit}"
    return f"{seconds:.0f} s"


def lines(found: Sequence[Summary], now: float) -> list[str]:
    """The table as text, its columns as wide as they need to be; the head alone where there is no device."""
    rows = [COLUMNS, *(cells(summary, now) for summary in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    return [
        "  ".join(
            text.rjust(width) if name in RIGHT else text.ljust(width)
            for text, width, name in zip(row, widths, COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _WHY else text[: _WHY - 1] + "…"
