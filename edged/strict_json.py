"""JSON as it is taken from a sender: what Python's json takes and JSON has not is refused, in words for people."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

_MAX_DIGITS = 300
"""Of a whole number: a float cannot be larger, and reading one takes a time that grows with the square."""


def loads(text: str) -> Any:
    """Read JSON (RFC 8259). Raises json.JSONDecodeError, RecursionError, and ValueError for a field that stands in an
    object twice, for NaN and Infinity, and for numbers that are too large."""
    return json.loads(
        text, object_pairs_hook=_unique, parse_constant=no_constant, parse_float=_finite, parse_int=_integer
    )


def read_object(payload: bytes) -> dict[str, Any]:
    """The object that a message carries. Raises ValueError, in words for the sender."""
    try:
        document = loads(payload.decode())
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("the document is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the document is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    if not isinstance(document, dict):
        raise ValueError("the document must be a JSON object")
    return document


def canonical(value: object) -> str:
    """The one JSON text of a value, whatever the order of its fields: for checksums and signatures."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def shown(name: str) -> str:
    """A name of the sender's for a message: quoted, escaped, cut."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def no_constant(name: str) -> NoReturn:
    """As `parse_constant`: refuse NaN and Infinity, which JSON has not. Raises ValueError."""
    raise ValueError(f"{name} is not a number in JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the field {shown(twice)} stands there twice: send it once")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is beyond what a number can be, at most about 1.8e308")
    return number


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits: up to {_MAX_DIGITS} are taken")
    return int(text)
