"""How long a text a structure may force at once, from above. Pure.

llguidance finds forced text in one piece, which takes about 4 µs a byte while the GIL is held and every job waits. So a
structure that may force a long text forces nothing (`Grammar.forces`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MOST_FORCED = 4096
"""Bytes that may be forced at once."""
_CHARACTER_BYTES = 4
_REPEATED_GROUP = re.compile(r"[)}]\{(\d+)")
_REPEATED = re.compile(r"[^)}]\{(\d+)")


def most_forced(schema: Any) -> float:
    """Bytes of the longest text that an answer to this JSON schema may have to have at one place.

    There may be white space between the parts of JSON, so that such a text lies within a value or a name.
    """
    if isinstance(schema, list):
        return max(map(most_forced, schema), default=0)
    if isinstance(schema, str):
        return len(json.dumps(schema))
    if not isinstance(schema, Mapping):
        return 0
    return max((max(len(json.dumps(key)), _most_of(key, value, schema)) for key, value in schema.items()), default=0)


def most_forced_by_regex(pattern: str) -> float:
    """The same of a regular expression, all of which may be one text."""
    groups = math.prod(int(count) or 1 for count in _REPEATED_GROUP.findall(pattern))
    characters = sum(map(int, _REPEATED.findall(pattern)))
    return groups * (len(pattern.encode()) + _CHARACTER_BYTES * characters)


def _most_of(keyword: str, value: Any, schema: Mapping[str, Any]) -> float:
    if keyword == "const":
        return len(json.dumps(value))
    if keyword == "enum" and isinstance(value, list):
        return max((len(json.dumps(one)) for one in value), default=0)
    if keyword == "pattern" and isinstance(value, str):
        least = schema.get("minLength", 0)
        return max(most_forced_by_regex(value), least if isinstance(least, int) else 0)
    if keyword == "patternProperties" and isinstance(value, Mapping):
        return max(most_forced(value), *map(most_forced_by_regex, value), 0)
    return 0 if isinstance(value, str) else most_forced(value)
