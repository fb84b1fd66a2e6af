"""JSON schemas are rewritten into equivalent ones, judged as they are, or refused: never served as something else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS
from hypothesis import example, given
from hypothesis import strategies as st
from judging import Case, Judge, Verdict, read_cases
from schema_oracle import allows

from edged.engine.json_schema import MAX_PARTS, rewritten
from edged.engine.schema_form import GrammarError, UnservedGrammarError
from edged.engine.schema_logic import Logic

SUITE = Path(__file__).parents[1] / "fixtures" / "json_schema_test_suite.jsonl.gz"
NAMES = ("a", "b", "c")
VALUES: list[Any] = [None, True, False, 0, 1, 2.5, "", "x", "xy", [], ["x"], ["x", "y"], ["y", "y"], [1, None]]
VALUES += [{name: value} for name in NAMES for value in (1, "x", True)]
VALUES += [{}, {"a": 1, "b": "x"}, {"a": "x", "b": 1}, {"a": 1, "c": True}, {"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}]
VALUES += [{"d": 1}, {"a": {"a": 1}}, {"a": {}}, {"a": [1], "b": None}]


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge(MODELS / "phi3")
    yield judge
    judge.close()


def names(most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(NAMES), max_size=most, unique=True)


def keyword(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One keyword, or a few that belong together."""
    values = st.sampled_from([value for value in VALUES if not isinstance(value, (float, dict))])
    small, some = st.integers(0, 2), st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
        | st.lists(st.sampled_from(["null", "boolean", "number", "string", "object"]), min_size=1, unique=True),
        "const": values,
        "enum": st.lists(values, min_size=1, max_size=3),
        "required": names(),
        "properties": named,
        "additionalProperties": inner,
        "dependentRequired": st.dictionaries(st.sampled_from(NAMES), names(2), max_size=2),
        "dependencies": st.dictionaries(st.sampled_from(NAMES), names(2) | inner, max_size=2),
        "propertyNames": st.fixed_dictionaries({"enum": names().filter(bool)}),
        "items": inner,
        "not": inner,
        **dict.fromkeys(("allOf", "anyOf", "oneOf"), some),
        **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), small),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), small),
    }
    single = st.one_of([value.map(lambda v, k=kind: {k: v}) for kind, value in kinds.items()])  # type: ignore[misc]
    condition = st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner})
    counted = st.fixed_dictionaries(
        {"properties": named.filter(bool), "minProperties": small},
        optional={"maxProperties": st.integers(1, 3), "additionalProperties": st.booleans(), "required": names(1)},
    )
    few = st.fixed_dictionaries(
        {"type": st.just("array"), "uniqueItems": st.just(True)},
        optional={"items": st.just({"enum": ["x", "y"]}), "maxItems": small},
    )
    return single | condition | counted | few


def schema() -> st.SearchStrategy[Any]:
    return st.recursive(
        st.booleans() | st.just({}),
        lambda inner: st.lists(keyword(inner), min_size=1, max_size=3).map(
            lambda parts: dict(itertools.chain.from_iterable(part.items() for part in parts))
        ),
        max_leaves=6,
    )


class TestEquivalence:
    @given(schema())
    @example({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]})
    @example({"properties": {"a": True, "b": True}, "minProperties": 1, "maxProperties": 1})
    @example({"properties": {"b": True}, "required": ["a"], "maxProperties": 2, "additionalProperties": False})
    @example({"dependentRequired": {"a": ["a", "b"], "b": ["c"]}})
    @example({"not": {"properties": {"a": {"type": "string"}}, "required": ["a"]}})
    def test_a_served_schema_takes_the_values_that_it_allows_and_no_others(self, judge: Judge, schema: Any) -> None:
        verdict = Verdict()
        judge.judge(Case("a", schema, tuple((value, allows(schema, value)) for value in VALUES)), verdict)
        assert not verdict.wrong, (schema, rewritten(schema))

    @given(schema())
    @example({"anyOf": [{"type": "string"}, {"required": ["a"]}]})
    @example({"allOf": [{"properties": {"a": {"type": "string"}}}, {"maxProperties": 1}], "minProperties": 1})
    def test_a_negation_holds_where_its_schema_does_not(self, schema: Any) -> None:
        negation = Logic(schema).negation(schema)
        if negation is not None:
            assert all(allows(negation, value) != allows(schema, value) for value in VALUES), negation

    @given(st.lists(schema(), min_size=2, max_size=3))
    def test_schemas_that_are_called_contradictory_have_no_value_in_common(self, schemas: list[Any]) -> None:
        if Logic(True).contradictory(schemas):
            assert not any(all(allows(one, value) for one in schemas) for value in VALUES)


FORMATS_JUDGED_OTHERWISE = {
    "email": "local parts in quotes, and IPv6 addresses as domains, are not served",
    "hostname": "whether what follows xn-- is Punycode is not checked",
    "iri": "addresses of future versions in brackets are not served",
    "time": "leap seconds are served in UTC alone",
    "date-time": "leap seconds are served in UTC alone",
}


@pytest.mark.slow
def test_the_standards_own_tests_are_judged_as_they_say(judge: Judge) -> None:
    verdict = Verdict()
    for case in read_cases(SUITE):
        judge.judge(case, verdict)
    known = {f"draft2020-12/optional/format/{name}" for name in FORMATS_JUDGED_OTHERWISE}
    assert [wrong for wrong in verdict.wrong if wrong[0].partition(":")[0] not in known] == []
    assert {wrong[0].partition(":")[0] for wrong in verdict.wrong} == known
    assert verdict.served >= 410


SERVED: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "oneOf of a reference and null": (
        {"oneOf": [{"$ref": "#/$defs/x"}, {"type": "null"}], "$defs": {"x": {"type": "string"}}},
        ["x", None],
        [1, {}],
    ),
    "oneOf told apart by a required constant": (
        {
            "oneOf": [
                {"required": ["kind"], "properties": {"kind": {"const": "a"}, "x": {"type": "number"}}},
                {"required": ["kind"], "properties": {"kind": {"enum": ["b", "c"]}}},
            ],
            "type": "object",
        },
        [{"kind": "a", "x": 1}, {"kind": "b"}, {"kind": "c"}],
        [{"kind": "d"}, {"kind": "a", "x": "1"}, {}],
    ),
    "oneOf told apart by how patterns begin": (
        {"oneOf": [{"type": "string", "pattern": "^https?://.+$"}, {"type": "string", "pattern": "^\\./.+$"}]},
        ["http://a", "./a"],
        ["a", "/"],
    ),
    "if, then, else": (
        {
            "if": {"properties": {"a": {"const": True}}, "required": ["a"]},
            "then": {"required": ["b"]},
            "else": {"required": ["c"]},
            "type": "object",
        },
        [{"a": True, "b": 1}, {"c": 1}, {"a": False, "c": 1}],
        [{"a": True, "c": 1}, {"b": 1}],
    ),
    "a format that is no format of the standard": ({"type": "string", "format": "path"}, ["x", "/"], [1]),
    "the last of February": ({"format": "date"}, ["2024-02-29", "2000-02-29", 7], ["2023-02-29", "1900-02-29"]),
    "siblings of $ref in draft 7": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "properties": {"a": {"$ref": "#/definitions/x", "minLength": 3}},
            "definitions": {"x": {"type": "string"}},
        },
        [{"a": "x"}],
        [{"a": 1}],
    ),
    "a schema at an odd place": (
        {"properties": {"a": {"$ref": "#/odd/x"}}, "odd": {"x": {"format": "nothing", "type": "string"}}},
        [{"a": "x"}],
        [{"a": 1}],
    ),
    "options for llguidance": (
        {"x-guidance": {"lenient": True, "coerce_one_of": True}, "type": "string"},
        ["x"],
        [1],
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_llguidance_alone_refuses_is_served(judge: Judge, name: str) -> None:
    schema, right, wrong = SERVED[name]
    verdict = Verdict()
    judge.judge(Case(name, schema, (*((v, True) for v in right), *((v, False) for v in wrong))), verdict)
    assert (verdict.refused, verdict.wrong) == ({}, [])


REFUSED: dict[str, Any] = {
    "oneOf with branches that overlap": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "oneOf of patterns that may meet": {"oneOf": [{"pattern": "^a*$"}, {"pattern": "^aa$"}], "type": "string"},
    "oneOf where a sibling of $ref does not count": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "oneOf": [{"$ref": "#/definitions/x", "type": "null"}, {"type": "string", "minLength": 1}],
        "definitions": {"x": {"pattern": "a"}},
    },
    "a format of the standard that nothing says": {"type": "string", "format": "idn-email"},
    "properties of which one may come twice": {"type": "object", "minProperties": 2},
    "list without repetitions": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    "a constant that no double is": {"const": 2**53 + 1},
    "llguidance's lenient mode": {"x-guidance": {"lenient": True}, "contains": {"type": "string"}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_guaranteed_is_refused(judge: Judge, name: str) -> None:
    verdict = Verdict()
    judge.judge(Case(name, REFUSED[name], ()), verdict)
    assert verdict.refused[name].startswith("UnservedGrammarError: ")


WRONG: list[tuple[Any, str]] = [
    ([], "the schema must be a schema"),
    ({"type": "text"}, "/type must be of null, boolean, integer"),
    ({"properties": {"a": {"type": 7}}}, "/properties/a/type must be a type or a list of types"),
    ({"properties": {"a": "string"}}, "/properties/a must be a schema"),
    ({"required": True}, "/required must be a list of names"),
    ({"anyOf": []}, "/anyOf must be a list of schemas"),
    ({"minLength": -1}, "/minLength must be a whole number from 0 on"),
    ({"minLength": True}, "/minLength must be a whole number from 0 on"),
    ({"$ref": "#/$defs/none"}, "/$ref points to '#/$defs/none', where no schema is"),
    ({"dependentRequired": {"a": [1]}}, "what depends on 'a' must be a list of names"),
]


@pytest.mark.parametrize(("schema", "reason"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_no_schema_is_refused_with_its_place(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarError) as refused:
        rewritten(schema)
    assert reason in str(refused.value)


def test_a_schema_is_not_changed_itself() -> None:
    schema = {"oneOf": [{"type": "null"}, {"format": "date"}], "odd": {"format": "x"}, "not": {"$ref": "#/odd"}}
    before = repr(schema)
    rewritten(schema)
    assert repr(schema) == before


class TestBombs:
    """They end at a bound, and are refused or left to llguidance's own bounds."""

    def test_references_that_double_at_each_level(self) -> None:
        levels = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "minLength": n} for n in range(40)}
        laughs = {"oneOf": [{"$ref": "#/$defs/a0"}] * 2, "$defs": {**levels, "a40": {"type": "string"}}}
        assert "oneOf" in rewritten(laughs)

    def test_references_in_a_circle(self) -> None:
        circle = {"$defs": {"a": {"not": {"$ref": "#/$defs/b"}}, "b": {"not": {"$ref": "#/$defs/a"}}}}
        rewritten({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], **circle})

    def test_negations_that_grow(self) -> None:
        inner: Any = {"required": ["a"]}
        for _ in range(14):
            inner = {"anyOf": [{"properties": {"a": inner, "b": inner}}, {"required": ["b"]}]}
        with pytest.raises(UnservedGrammarError, match="more than"):
            rewritten({"not": inner})

    def test_a_schema_of_too_many_parts(self) -> None:
        with pytest.raises(UnservedGrammarError, match=f"more than {MAX_PARTS} parts"):
            rewritten({"properties": {f"p{n}": {} for n in range(MAX_PARTS)}})
