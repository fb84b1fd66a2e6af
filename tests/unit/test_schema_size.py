"""What an answer to a schema takes at least: never more than the shortest one does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from schema_oracle import allows
from test_json_schema import VALUES, schema

from edged.engine.schema_size import Size, least_size

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}
ENDLESS: dict[str, Any] = {
    "a circle of required properties": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "a circle of items": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}},
    },
    "a reference to itself": {"$ref": "#"},
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schema_whose_answers_have_no_end(name: str) -> None:
    assert math.isinf(least_size(ENDLESS[name]).bytes)


def test_a_circle_with_a_way_out_ends() -> None:
    list_ = {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}
    node = {**NODE, "properties": {"next": list_}}
    assert least_size({"$ref": "#/$defs/node", "$defs": {"node": node}}) == Size(len('{"next":null}'), 1)


def test_a_long_chain_of_references_is_followed() -> None:
    chain = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(40)}
    assert least_size({"$ref": "#/$defs/a0", "$defs": {**chain, "a40": {"const": "four"}}}) == Size(6)
    longer = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(400)}
    assert least_size({"$ref": "#/$defs/a0", "$defs": {**longer, "a400": {"const": "four"}}}).bytes <= 6


def test_numbers_of_items_and_characters_count() -> None:
    item = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "minLength": 3}}}
    size = least_size({"type": "array", "minItems": 1000, "items": item})
    assert size == Size(len(json.dumps([{"a": "xyz"}] * 1000, separators=(",", ":"))), 1000)


def test_numbers_beyond_any_float_are_only_large() -> None:
    schema: dict[str, Any] = {"type": "string", "minLength": 10**400}
    for _ in range(3):
        schema = {"type": "array", "minItems": 10**299, "items": schema}
    assert 1e18 < least_size(schema).bytes < math.inf


def count(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        yield len(value)
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from count(one)


@given(schema())
def test_no_valid_value_is_shorter(schema: Any) -> None:
    least = least_size(schema)
    for value in VALUES:
        if allows(schema, value):
            assert len(json.dumps(value, separators=(",", ":")).encode()) >= least.bytes
            assert sum(count(value)) >= least.properties
