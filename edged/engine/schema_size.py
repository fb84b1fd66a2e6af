"""The least that an answer to a JSON schema takes: bytes and properties. Pure. Never more than any answer has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edged.engine.schema_form import Schema, type_of, types_of, values_of
from edged.engine.schema_logic import Logic

_ROUNDS = 64
"""Lengths of chains of references that are followed to their end."""
_MOST_ITEMS = 64
"""Items with schemas of their own that are looked at one by one."""


@dataclass(frozen=True)
class Size:
    """Bytes of JSON without white space, and properties of all objects in it; infinite where there is no answer."""

    bytes: float
    properties: float = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.properties + other.properties)

    def times(self, count: float) -> Size:
        """Several of these."""
        return Size(_capped(self.bytes * count), _capped(self.properties * count)) if count else Size(0)


_NONE = Size(math.inf, math.inf)
_MOST = 1 << 60
"""More than any answer has."""


def least_size(schema: Schema) -> Size:
    """What an answer has at least. Infinite where each answer would have to hold another of the same kind."""
    sizer = _Sizer(schema)
    size = sizer.size(schema)
    # Each round knows answers to which chains of one reference more lead.
    for _ in range(_ROUNDS):
        if not sizer.next_round():
            return size
        size = sizer.size(schema)
    return Size(0)  # a longer chain than anybody writes


class _Sizer:
    def __init__(self, root: Schema) -> None:
        self._logic = Logic(root)
        self._known: dict[str, Size] = {}
        """Sizes by reference, as far as they are known: from above."""

    def next_round(self) -> bool:
        """Find the sizes of the references anew; whether one has changed."""
        before = dict(self._known)
        for reference in reversed(list(self._known)):  # those found last first: they know what the others ask
            target = self._logic.target(reference)
            self._known[reference] = Size(0) if target is None else self.size(target)
        return self._known != before

    def size(self, schema: Schema) -> Size:
        if isinstance(schema, bool):
            return Size(1) if schema else _NONE
        sizes = [_least(self._of_type(kind, schema) for kind in types_of(schema))]
        if (values := values_of(schema)) is not None:
            sizes.append(_least(_size_of(value) for value in values))
        if "$ref" in schema:
            sizes.append(self._known.setdefault(schema["$ref"], _NONE))
        sizes += [self.size(one) for one in schema.get("allOf", ())]
        sizes += [_least(self.size(one) for one in schema[name]) for name in ("anyOf", "oneOf") if name in schema]
        return Size(max(one.bytes for one in sizes), max(one.properties for one in sizes))

    def _of_type(self, kind: str, schema: Mapping[str, Any]) -> Size:
        if kind == "string":
            return Size(2 + _capped(schema.get("minLength", 0)))
        if kind == "array":
            count = min(int(schema.get("minItems", 0)), _MOST)
            first = schema.get("prefixItems", schema.get("items"))
            items = [self.size(one) for one in first[: min(count, _MOST_ITEMS)]] if isinstance(first, list) else []
            rest = schema.get("items", True)
            others = Size(1) if isinstance(rest, list) else self.size(rest) if count else Size(0)
            return sum(items, Size(2 + max(0, count - 1))) + others.times(count - len(items))
        if kind == "object":
            names = dict.fromkeys(schema.get("required", ()))
            size = Size(2 + max(0, len(names) - 1))
            for name in names:
                inner = schema.get("properties", {}).get(name, True)
                size += _property(name) + self.size(inner)
            return size
        return Size({"null": 4, "boolean": 4}.get(kind, 1))


def _capped(count: float) -> float:
    """Not so large that no float could hold it: whole numbers in JSON have no end."""
    return count if count == math.inf else min(count, _MOST)


def _least(sizes: Iterable[Size]) -> Size:
    every = list(sizes) or [_NONE]
    return Size(min(one.bytes for one in every), min(one.properties for one in every))


def _property(name: str) -> Size:
    return Size(len(json.dumps(name, ensure_ascii=False).encode()) + 1, 1)


def _size_of(value: Any) -> Size:
    """The least of one value. A number may be written in other ways, each with one digit at least."""
    kind = type_of(value)
    if kind == "number":
        return Size(1)
    if kind == "array":
        return sum((_size_of(one) for one in value), Size(2 + max(0, len(value) - 1)))
    if kind == "object":
        inner = (_property(name) + _size_of(one) for name, one in value.items())
        return sum(inner, Size(2 + max(0, len(value) - 1)))
    return Size(len(json.dumps(value, ensure_ascii=False).encode()))
