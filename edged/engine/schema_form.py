"""The form of JSON schemas: the keywords, what stands in each, and the refusal of what is no schema. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

Schema = Any
"""A JSON schema as parsed: an object, true or false."""

TYPES = ("null", "boolean", "number", "string", "array", "object")
BOUNDS: dict[str, tuple[str, str, int]] = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}
"""Keyword: the type that it binds, the keyword that says the opposite, and what is added to its number for that."""
SIZES = frozenset(keyword for keyword, (kind, _, _) in BOUNDS.items() if kind != "number")
MAPS = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SINGLE = frozenset(
    """
    additionalItems additionalProperties contains else if not propertyNames then unevaluatedItems unevaluatedProperties
    """.split()
)
ASSERTIONS = (
    frozenset(BOUNDS)
    | SINGLE
    | LISTS
    | frozenset(
        """
        $dynamicRef $recursiveRef $ref const dependencies dependentRequired dependentSchemas enum format items
        maxContains minContains multipleOf pattern patternProperties properties required type uniqueItems
        """.split()
    )
)
"""Keywords that can refuse a value. All others are annotations."""
_BOUND = (int, float, bool)
"""Exclusive bounds were true or false in draft 4."""
_FORMS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(MAPS, (dict, "an object of schemas")),
    **dict.fromkeys(LISTS, (list, "a list of schemas")),
    **dict.fromkeys(SIZES, ((int, float), "a whole number from 0 on")),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), ((int, float), "a number")),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (_BOUND, "a number")),
    **dict.fromkeys(("$ref", "format", "pattern"), (str, "text")),
    **dict.fromkeys(("dependencies", "dependentRequired"), (dict, "an object")),
    "enum": (list, "a list of values"),
    "required": (list, "a list of names"),
    "type": ((str, list), "a type or a list of types"),
    "uniqueItems": (bool, "true or false"),
}
"""Keywords with the Python type of their value, and what that must be in words."""
_NEVER_EMPTY = frozenset({"allOf", "anyOf", "oneOf", "enum", "type"})
_LARGEST = 1 << 53
"""From here on, not each whole number is a double, and llguidance counts in these."""


class GrammarError(ValueError):
    """What should be a JSON schema is none; the message names the place and says what would be right."""


class UnservedGrammarError(ValueError):
    """A valid schema whose answers cannot be guaranteed; the message names the keyword."""


def check_form(schema: object, where: str) -> None:
    """Check one schema, not those in it. `where` is a JSON pointer to it. Raises GrammarError, UnservedGrammarError."""
    if not isinstance(schema, dict):
        raise GrammarError(f"{where or 'the schema'} must be a schema: an object, true or false")
    for keyword, value in schema.items():
        if keyword in _FORMS and not _has_form(keyword, value):
            raise GrammarError(f"{where}/{keyword} must be {_FORMS[keyword][1]}")
    types = schema.get("type", ())
    if not set([types] if isinstance(types, str) else types) <= {*TYPES, "integer"}:
        raise GrammarError(f"{where}/type must be of null, boolean, integer, number, string, array and object")
    for name, one in {**schema.get("dependencies", {}), **schema.get("dependentRequired", {})}.items():
        if isinstance(one, list) and not all(isinstance(each, str) for each in one):
            raise GrammarError(f"{where}: what depends on {name!a} must be a list of names")
    constants = [schema[keyword] for keyword in ("const", "enum") if keyword in schema]
    if any(abs(number) > _LARGEST for number in _whole_numbers(constants)):
        raise UnservedGrammarError(f"{where} has a constant beyond 2^53, which is not told from its neighbours")


def _has_form(keyword: str, value: Any) -> bool:
    """Whether the value of a keyword has the form that it must have; schemas in it are not looked at."""
    kind, _ = _FORMS[keyword]
    fits = isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind not in (bool, _BOUND)):
        return False
    if keyword in SIZES:
        return bool(value >= 0 and value == int(value))
    if keyword in ("required", "type") and not all(isinstance(one, str) for one in value):
        return False
    return bool(value > 0 if keyword == "multipleOf" else value or keyword not in _NEVER_EMPTY)


def _whole_numbers(value: Any) -> Iterator[int]:
    level = [value]
    while level:
        one = level.pop()
        if isinstance(one, int) and not isinstance(one, bool):
            yield one
        elif isinstance(one, (list, dict)):
            level += one.values() if isinstance(one, dict) else one


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema's own `type` allows. An integer is a number."""
    given: str | Sequence[str] = schema.get("type", TYPES)
    return {"number" if kind == "integer" else kind for kind in ([given] if isinstance(given, str) else given)}


def values_of(schema: Mapping[str, Any]) -> Sequence[Any] | None:
    """All values that a schema allows, None where it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    values: Sequence[Any] | None = schema.get("enum")
    return values


def type_of(value: object) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON: 1 is 1.0, and not true."""
    if type_of(one) != type_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number in JSON."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
