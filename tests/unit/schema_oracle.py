"""What tests of JSON schemas share: which values a schema allows, keyword by keyword as the standard has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edged.engine.schema_form import is_number, same, type_of

_SIZES = {"Length": "string", "Items": "array", "Properties": "object"}


def allows(schema: Any, value: Any) -> bool:
    """Whether the value is valid. Knows no `$ref` and no `format`."""
    if isinstance(schema, bool):
        return schema
    return all(_holds(keyword, wanted, value, schema) for keyword, wanted in schema.items())


def _holds(keyword: str, wanted: Any, value: Any, schema: Mapping[str, Any]) -> bool:
    kind = type_of(value)
    if keyword == "type":
        types = [wanted] if isinstance(wanted, str) else wanted
        return kind in types or ("integer" in types and kind == "number" and value == int(value))
    if keyword in ("const", "enum"):
        return any(same(value, one) for one in ([wanted] if keyword == "const" else wanted))
    if keyword in ("allOf", "anyOf", "oneOf"):
        count = sum(allows(one, value) for one in wanted)
        return count == len(wanted) if keyword == "allOf" else count == 1 if keyword == "oneOf" else count > 0
    if keyword == "not":
        return not allows(wanted, value)
    if keyword == "if":
        return allows(schema.get("then" if allows(wanted, value) else "else", True), value)
    for ending, bound in _SIZES.items():
        if keyword in (f"min{ending}", f"max{ending}"):
            return kind != bound or (len(value) >= wanted if keyword.startswith("min") else len(value) <= wanted)
    if kind == "number":
        return _number_holds(keyword, wanted, value)
    if kind == "string":
        return keyword != "pattern" or re.search(wanted, value) is not None
    if kind == "array":
        return _array_holds(keyword, wanted, value)
    return kind != "object" or _object_holds(keyword, wanted, value, schema)


def _number_holds(keyword: str, wanted: Any, value: float) -> bool:
    if not is_number(wanted):
        return True
    return {
        "minimum": value >= wanted,
        "maximum": value <= wanted,
        "exclusiveMinimum": value > wanted,
        "exclusiveMaximum": value < wanted,
    }.get(keyword, True)


def _array_holds(keyword: str, wanted: Any, value: list[Any]) -> bool:
    if keyword == "items":
        return all(allows(wanted, one) for one in value)
    if keyword == "uniqueItems":
        return not wanted or not any(same(one, other) for at, one in enumerate(value) for other in value[:at])
    return True


def _object_holds(keyword: str, wanted: Any, value: dict[str, Any], schema: Mapping[str, Any]) -> bool:
    if keyword == "required":
        return all(name in value for name in wanted)
    if keyword == "properties":
        return all(allows(one, value[name]) for name, one in wanted.items() if name in value)
    if keyword == "propertyNames":
        return all(allows(wanted, name) for name in value)
    if keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        demands = {name: {"required": one} if isinstance(one, list) else one for name, one in wanted.items()}
        return all(allows(one, value) for name, one in demands.items() if name in value)
    if keyword in ("additionalProperties", "unevaluatedProperties"):
        return all(allows(wanted, one) for name, one in value.items() if name not in schema.get("properties", {}))
    return True
