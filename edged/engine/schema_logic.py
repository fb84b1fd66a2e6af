"""What can be proved of JSON schemas: that no value satisfies several of them, and which schema is another's negation.

Every answer is safe: where nothing can be proved, nothing is claimed. Patterns are never run: strangers write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from edged.engine.schema_form import (
    ASSERTIONS,
    BOUNDS,
    TYPES,
    Schema,
    is_number,
    same,
    type_of,
    types_of,
    values_of,
)
from edged.engine.schema_formats import STANDARD

_INNER = frozenset({"$ref", "allOf", "anyOf", "not", "oneOf"})
_REST = frozenset({"additionalItems", "additionalProperties", "items", "unevaluatedItems", "unevaluatedProperties"})
_OLD_DRAFTS = tuple(f"http://json-schema.org/draft-0{number}/schema" for number in (3, 4, 6, 7))
_PREFIX = re.compile(r"\^((?:[A-Za-z0-9 _:/@#%&=<>!\"',;~-]|\\[./+*?()\[\]{}|^$\\-])*)([*?{|]?)")
"""The literal text with which every match of a pattern begins, and what may undo its last character or all of it."""
_MOST_NAMES, _MOST_ITEMS, _MOST_VALUES, _MOST_DEPTH = 64, 4, 256, 24


class Logic:
    """Proofs about the schemas of one document. At most `budget` schemas are looked at, over all questions."""

    def __init__(self, root: Schema, budget: int = 20_000) -> None:
        self._root = root
        self._budget = budget
        self.old = isinstance(root, dict) and str(root.get("$schema", "")).rstrip("#") in _OLD_DRAFTS
        """Whether the document is of a draft in which `$ref` replaces the keywords beside it."""
        names = ("$id", "id") if self.old else ("$id",)
        self.one_base = not any(_is_base(part.get(name)) for part in _below(root) for name in names)
        """Whether all references are meant from the root."""

    def target(self, reference: str) -> Schema | None:
        """The schema that a `$ref` points to; None where that is not known for sure."""
        if not self.one_base or not reference.startswith("#") or reference[1:2] not in ("", "/"):
            return None
        node = self._root
        for name in segments(reference):
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                return None
        return node if isinstance(node, (dict, bool)) else None

    def contradictory(self, schemas: Iterable[Schema], depth: int = 0) -> bool:
        """Whether it is proved that no value satisfies all of these."""
        self._budget -= 1
        if self._budget < 0 or depth > _MOST_DEPTH:
            return False
        atoms: list[Mapping[str, Any]] = []
        choices: list[Sequence[Schema]] = []
        if not all(self._flatten(schema, atoms, choices, set(), depth) for schema in schemas):
            return True
        values = next((found for atom in atoms if (found := values_of(atom)) is not None), None)
        if values is not None and len(values) <= _MOST_VALUES and all(_refused(value, atoms) for value in values):
            return True
        types = set(TYPES).intersection(*(types_of(atom) for atom in atoms))
        if all(self._contradictory_as(kind, atoms, depth) for kind in types):
            return True
        return any(all(self.contradictory([*atoms, one], depth + 1) for one in options) for options in choices)

    def negation(self, schema: Schema, depth: int = 0) -> Schema | None:
        """A schema that holds for exactly the values for which `schema` does not; None where none is known."""
        self._budget -= 1
        if self._budget < 0 or depth > _MOST_DEPTH:
            return None
        if isinstance(schema, bool):
            return not schema
        parts: list[Schema] = []
        for keyword in self.asserting(schema):
            found = self._negated(keyword, schema[keyword], depth)
            if found is None:
                return None
            parts += [part for part in found if part is not False]
        if len(parts) < 2:
            return parts[0] if parts else False
        return {"anyOf": parts}

    def asserting(self, schema: Mapping[str, Any]) -> list[str]:
        """The keywords of a schema that can refuse a value."""
        if self.old and "$ref" in schema:
            return ["$ref"]
        return [keyword for keyword in schema if keyword in ASSERTIONS]

    def _negated(self, keyword: str, value: Any, depth: int) -> list[Schema] | None:
        """Schemas of which one holds exactly where this keyword refuses a value; None where none are known."""
        if keyword == "not":
            return [value]
        if keyword in ("$ref", "allOf", "anyOf"):
            inner = [self.target(value)] if keyword == "$ref" else value
            each = [None if one is None else self.negation(one, depth + 1) for one in inner]
            if any(one is None for one in each):
                return None
            return [{"allOf": each}] if keyword == "anyOf" else each
        if keyword == "type":
            return _other_types(value)
        if keyword in ("const", "enum"):
            return _other_values([value] if keyword == "const" else value)
        if keyword == "required":
            return [{"type": "object", "properties": {name: False}} for name in value]
        if keyword == "properties":
            denied = {name: self.negation(one, depth + 1) for name, one in value.items()}
            if any(one is None for one in denied.values()):
                return None
            return [
                {"type": "object", "required": [name], "properties": {name: one}}
                for name, one in denied.items()
                if one is not False
            ]
        if keyword in BOUNDS and not isinstance(value, bool):
            kind, opposite, more = BOUNDS[keyword]
            return [{"type": kind, opposite: value + more}] if kind == "number" or value + more >= 0 else []
        if keyword in ("then", "else") or asks_nothing(keyword, value):  # `if` is refused beside them
            return []
        return [] if keyword in _REST and (value is True or value == {}) else None

    def _flatten(
        self,
        schema: Schema,
        atoms: list[Mapping[str, Any]],
        choices: list[Sequence[Schema]],
        seen: set[str],
        depth: int,
    ) -> bool:
        """Add what `schema` demands: objects that all must hold, and lists of which one must. False if it is false."""
        self._budget -= 1
        if isinstance(schema, bool):
            return schema
        if self._budget < 0:
            return True
        keywords = self.asserting(schema)
        atoms.append({keyword: schema[keyword] for keyword in keywords if keyword not in _INNER})
        demanded: list[Schema] = list(schema["allOf"]) if "allOf" in keywords else []
        if "$ref" in keywords and schema["$ref"] not in seen:
            target = self.target(schema["$ref"])
            seen = {*seen, schema["$ref"]}
            demanded += [] if target is None else [target]
        if "not" in keywords and (opposite := self.negation(schema["not"], depth + 1)) is not None:
            demanded.append(opposite)
        choices += [schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in keywords]
        return all(self._flatten(one, atoms, choices, seen, depth) for one in demanded)

    def _contradictory_as(self, kind: str, atoms: Sequence[Mapping[str, Any]], depth: int) -> bool:
        """The same for values of one type."""
        least, most = _range(kind, atoms)
        if least > most:
            return True
        if kind == "number":
            strict = [atom.get(name) for atom in atoms for name in ("exclusiveMinimum", "exclusiveMaximum")]
            return least == most and any(bound == least for bound in strict if is_number(bound))
        if kind == "string":
            return _diverge([atom["pattern"] for atom in atoms if "pattern" in atom])
        if kind == "array":
            each = [[_item(atom, place) for atom in atoms] for place in range(int(min(least, _MOST_ITEMS)))]
            return any(self.contradictory(items, depth + 1) for items in each)
        if kind == "object":
            names = dict.fromkeys(name for atom in atoms for name in atom.get("required", ()))
            if len(names) > most:
                return True
            each = [[_property(atom, name) for atom in atoms] for name in list(names)[:_MOST_NAMES]]
            return any(self.contradictory(values, depth + 1) for values in each)
        return False


def _refused(value: Any, atoms: Iterable[Mapping[str, Any]]) -> bool:
    """Whether it is sure that one of these refuses the value."""
    kind = type_of(value)
    for atom in atoms:
        listed = values_of(atom)
        if kind not in types_of(atom) or (listed is not None and not any(same(value, one) for one in listed)):
            return True
        least, most = _range(kind, [atom])
        size = value if kind == "number" else len(value) if kind in ("string", "array", "object") else 0
        if not least <= size <= most:
            return True
        if kind == "object" and any(name not in value for name in atom.get("required", ())):
            return True
    return False


def _range(kind: str, atoms: Iterable[Mapping[str, Any]]) -> tuple[float, float]:
    """Between which numbers a value of this type, or its length, must be; exclusive bounds are taken as inclusive."""
    least, most = (float("-inf"), float("inf")) if kind == "number" else (0.0, float("inf"))
    for atom in atoms:
        for keyword, (bound, _, _) in BOUNDS.items():
            if bound == kind and is_number(limit := atom.get(keyword)):
                if keyword.lower().endswith("minimum") or keyword.startswith("min"):
                    least = max(least, limit)
                else:
                    most = min(most, limit)
    return least, most


def _property(atom: Mapping[str, Any], name: str) -> Schema:
    """What a schema demands of this property at least."""
    if name in (named := atom.get("properties", {})):
        return named[name]
    return True if atom.get("patternProperties") else atom.get("additionalProperties", True)


def _item(atom: Mapping[str, Any], place: int) -> Schema:
    """What a schema demands of the item at this place at least."""
    first = atom.get("prefixItems", atom.get("items"))
    if isinstance(first, list):
        return first[place] if place < len(first) else True
    return atom.get("items", True)


def _diverge(patterns: Iterable[str]) -> bool:
    """Whether two of the patterns begin with different literal texts."""
    starts = []
    for pattern in patterns:
        found = _PREFIX.match(pattern)
        if found is None or "|" in pattern:
            continue
        literal = re.sub(r"\\(.)", r"\1", found[1])
        starts.append(literal[:-1] if found[2] else literal)
    return any(not one.startswith(other) and not other.startswith(one) for one in starts for other in starts)


def _other_types(given: str | Sequence[str]) -> list[Schema] | None:
    """A schema of all other types. Numbers that are no integers cannot be told."""
    types = {given} if isinstance(given, str) else set(given)
    if "integer" in types and "number" not in types:
        return None
    others = [kind for kind in TYPES if kind not in types]
    return [{"type": others}] if others else []


def _other_values(values: Sequence[Any]) -> list[Schema] | None:
    """Schemas of all values but these, which must be null, true or false."""
    if not all(value is None or isinstance(value, bool) for value in values):
        return None
    left = {"null"} if None not in values else set()
    booleans = [value for value in (True, False) if not any(one is value for one in values)]
    others = [kind for kind in TYPES if kind not in ("null", "boolean") or kind in left]
    return [{"type": others}, *({"const": value} for value in booleans)]


def segments(reference: str) -> list[str]:
    """The names and numbers of a `$ref` that is a JSON pointer."""
    return [unquote(segment).replace("~1", "/").replace("~0", "~") for segment in reference.split("/")[1:]]


def asks_nothing(keyword: str, value: Any) -> bool:
    """Whether a keyword refuses no value, and means nothing for others."""
    if keyword == "format":
        return value not in STANDARD
    return keyword in ("uniqueItems", "exclusiveMinimum", "exclusiveMaximum") and value is False


def _below(node: Any) -> Iterator[Mapping[str, Any]]:
    """All objects below the root."""
    level = list(node.values()) if isinstance(node, dict) else []
    while level:
        part = level.pop()
        if isinstance(part, dict):
            yield part
            level += part.values()
        elif isinstance(part, list):
            level += part


def _is_base(id: Any) -> bool:
    """Whether an id gives the references below it another meaning."""
    return isinstance(id, str) and not id.startswith("#")
