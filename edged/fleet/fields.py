"""Reads values out of documents that may hold anything."""

from __future__ import annotations

import math
from typing import Any

from edged.machine.clock import parse_time


def object_of(value: Any) -> dict[str, Any]:
    """The value where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def pairs_of(value: Any) -> list[tuple[str, Any]]:
    """Names and values of an object."""
    return list(object_of(value).items())


def texts_of(value: Any) -> list[str]:
    """The texts of a list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def text_of(value: Any) -> str | None:
    """The value where it is a text that is not empty."""
    return value if isinstance(value, str) and value else None


def objects_of(value: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def number_of(value: Any) -> float | None:
    """The value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number that is too large
        return None


def seconds_of(time: Any) -> float | None:
    """Seconds since the epoch of a time as documents have it; None where it is none."""
    try:
        return parse_time(str(time))
    except ValueError:
        return None
