"""Rewrites a JSON schema into an equivalent one that llguidance serves. Pure.

llguidance knows no `not`, `if`, `dependencies` and their like, takes `oneOf` only where it sees by itself that the
branches exclude each other, and refuses formats that it does not know. Much of that can be said with the keywords that
it has. What cannot stays as it is, and llguidance refuses it by name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edged.engine.schema_form import (
    ASSERTIONS,
    LISTS,
    MAPS,
    SINGLE,
    SIZES,
    TYPES,
    GrammarError,
    Schema,
    UnservedGrammarError,
    check_form,
    values_of,
)
from edged.engine.schema_formats import SAID
from edged.engine.schema_logic import Logic, asks_nothing, segments

MAX_PARTS = 50_000
"""Schemas in one document, rewritten. llguidance takes as many."""
_MOST_OPTIONS = 64
"""Alternatives that one keyword is spelled out into."""
_MOST_UNIQUE = 4
"""Values of which the lists without repetitions are spelled out: of 5 there are 326 lists."""
_DEPENDENCIES = ("dependencies", "dependentRequired", "dependentSchemas")
_IN_PLACE = frozenset({"$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if", *_DEPENDENCIES})
"""Keywords whose schemas see the same value, and may know properties that the others do not."""


def rewritten(schema: Schema) -> Schema:
    """The equivalent schema. Raises GrammarError, and UnservedGrammarError for what llguidance would not keep to."""
    rewriter = _Rewriter(schema)
    return rewriter.rewrite_odd_targets(rewriter.rewrite(schema, ""))


class _Rewriter:
    """Rewrites one document. `where` is a JSON pointer, for messages."""

    def __init__(self, root: Schema) -> None:
        self._logic = Logic(root)
        self._parts = 0
        self._known: set[int] = set()
        """Identities of the document's schemas that were rewritten."""
        self._references: dict[str, None] = {}

    def rewrite(self, schema: Schema, where: str) -> Schema:
        """One schema and all in it."""
        if isinstance(schema, bool):
            return schema
        check_form(schema, where)
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise UnservedGrammarError(f"the schema has more than {MAX_PARTS} parts")
        self._known.add(id(schema))
        if self._logic.old and "$ref" in schema:
            schema = {name: value for name, value in schema.items() if name == "$ref" or name not in ASSERTIONS}
        made: dict[str, Any] = {}
        more: list[Schema] = []
        condition = self._condition(schema, where)
        said = set() if condition is None else {"if", "then", "else"}
        for keyword, value in schema.items():
            place = f"{where}/{keyword}"
            if keyword in said or asks_nothing(keyword, value):
                continue
            conjunct = self._conjunct(keyword, value, place)
            if conjunct is not None:
                more.append(conjunct)
            elif keyword == "oneOf":
                name, options = self._one_of(schema, place)
                if name in schema and name != keyword:
                    more.append({name: options})
                else:
                    made[name] = options
            elif keyword == "unevaluatedProperties" and not _IN_PLACE & schema.keys():
                made.setdefault("additionalProperties", schema.get("additionalProperties", self.rewrite(value, place)))
            else:
                made[keyword] = self._inside(keyword, value, place)
        more += _without_repetitions(schema, made) + _counted(schema, made, where)
        more += [] if condition is None else [condition]
        if more:
            made["allOf"] = made.pop("allOf", []) + more
        return made

    def rewrite_odd_targets(self, made: Schema) -> Schema:
        """Rewrite what a `$ref` points to where no keyword has a schema; `made` is the rewritten document."""
        pending = list(self._references)
        while pending:
            reference = pending.pop()
            target = self._logic.target(reference)
            if isinstance(target, dict) and id(target) not in self._known:
                known = len(self._references)
                made = _with(made, segments(reference), self.rewrite(target, reference[1:]))
                pending += list(self._references)[known:]
        return made

    def _inside(self, keyword: str, value: Any, where: str) -> Any:
        """The value of a keyword that stays, with the schemas in it rewritten."""
        if keyword in MAPS:
            return {name: self.rewrite(one, f"{where}/{name}") for name, one in value.items()}
        if keyword in LISTS or (keyword == "items" and isinstance(value, list)):
            return [self.rewrite(one, f"{where}/{place}") for place, one in enumerate(value)]
        if keyword in SINGLE or keyword == "items":
            return self.rewrite(value, where)
        if keyword == "$ref":
            if value.startswith("#") and self._logic.one_base and self._logic.target(value) is None:
                raise GrammarError(f"{where} points to {value[:100]!a}, where no schema is")
            self._references[value] = None
        if keyword in SIZES:
            return int(value)
        if keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            return _inner_double(value, up="inimum" in keyword)
        return value

    def _one_of(self, schema: Mapping[str, Any], where: str) -> tuple[str, list[Schema]]:
        """`oneOf` as `anyOf`, where the branches are proved exclusive or can be made so; else as it is."""
        branches, logic = schema["oneOf"], self._logic
        options = [self.rewrite(branch, f"{where}/{place}") for place, branch in enumerate(branches)]
        beside = {keyword: value for keyword, value in schema.items() if keyword != "oneOf"}
        excluded: list[list[Schema]] = [[] for _ in branches]
        for one, other in itertools.combinations(range(len(branches)), 2):
            if logic.contradictory([beside, branches[one], branches[other]]):
                continue
            for mine, its in ((one, other), (other, one)):
                negation = logic.negation(branches[its])
                if negation is None:
                    return "oneOf", options
                excluded[mine].append(self.rewrite(negation, where))
        return "anyOf", [
            {"allOf": [option, *others]} if others else option for option, others in zip(options, excluded, strict=True)
        ]

    def _condition(self, schema: Mapping[str, Any], where: str) -> Schema | None:
        """What `if`, `then` and `else` say together; None where `if` cannot be negated."""
        if "if" not in schema:  # the others ask nothing then
            return True if schema.keys() & {"then", "else"} else None
        opposite = self._logic.negation(schema["if"])
        if opposite is None:
            return None
        holds = {"allOf": [schema["if"], schema.get("then", True)]}
        return self.rewrite({"anyOf": [holds, {"allOf": [opposite, schema.get("else", True)]}]}, where)

    def _conjunct(self, keyword: str, value: Any, where: str) -> Schema | None:
        """A schema that says the same as a keyword which llguidance does not know; None where there is none."""
        if keyword == "not":
            opposite = self._logic.negation(value)
            return None if opposite is None else self.rewrite(opposite, where)
        if keyword in _DEPENDENCIES:
            demands = {name: {"required": one} if isinstance(one, list) else one for name, one in value.items()}
            each = [{"anyOf": [{"properties": {name: False}}, one]} for name, one in demands.items()]
            return self.rewrite({"allOf": each} if each else True, where)
        if keyword == "format" and value in SAID:
            return dict(SAID[value])
        if keyword == "propertyNames" and isinstance(value, dict):
            self.rewrite(value, where)
            asserting = [name for name in value if name in ASSERTIONS and (name, value[name]) != ("type", "string")]
            if asserting == ["pattern"]:
                return {"patternProperties": {value["pattern"]: True}, "additionalProperties": False}
            if asserting in (["enum"], ["const"]):
                names = {name: True for name in values_of(value) or () if isinstance(name, str)}
                return {"properties": names, "additionalProperties": False}
        return None


def _with(node: Any, path: Sequence[str], schema: Schema) -> Any:
    """A document with another schema at this place; as it is where the place was rewritten away."""
    if not path:
        return schema
    first, rest = path[0], path[1:]
    if isinstance(node, dict) and first in node:
        return {**node, first: _with(node[first], rest, schema)}
    if isinstance(node, list) and first.isdecimal() and int(first) < len(node):
        place = int(first)
        return [*node[:place], _with(node[place], rest, schema), *node[place + 1 :]]
    return node


def _inner_double(bound: float, up: bool) -> float:
    """A bound that llguidance does not round to a weaker one: it reads doubles, and knows the largest of 64 bits."""
    if not isinstance(bound, int) or isinstance(bound, bool) or int(float(bound)) == bound or bound == (1 << 63) - 1:
        return bound
    near = float(bound)
    if up and near < bound:
        return math.nextafter(near, math.inf)
    return math.nextafter(near, -math.inf) if not up and near > bound else near


def _others(kind: str) -> Schema:
    return {"type": [one for one in TYPES if one != kind]}


def _options(kind: str, schema: Mapping[str, Any], options: list[Schema]) -> list[Schema]:
    """That one of the options holds where the value is of this type, as one schema in a list."""
    return [{"anyOf": options if schema.get("type") == kind else [_others(kind), *options]}]


def _without_repetitions(schema: Mapping[str, Any], made: dict[str, Any]) -> list[Schema]:
    """`uniqueItems` over few listed values, spelled out; taken from `made` where it is said, or asks nothing."""
    if schema.get("uniqueItems") is not True:
        return []
    least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if most <= 1:
        del made["uniqueItems"]
        return []
    items = schema.get("items")
    if not isinstance(items, dict) or {"enum", "type"} < items.keys() & ASSERTIONS or "prefixItems" in schema:
        return []
    values = [value for value in items.get("enum", ()) if isinstance(value, str)]
    distinct = list(dict.fromkeys(values))
    if items.get("type", "string") != "string" or len(values) != len(items.get("enum", ())) or not values:
        return []
    if len(distinct) > _MOST_UNIQUE:
        return []
    del made["uniqueItems"]
    sizes = range(int(least), int(min(most, len(distinct))) + 1)
    lists = [list(one) for size in sizes for one in itertools.permutations(distinct, size)]
    return _options("array", schema, [{"enum": lists}] if lists else [])


def _counted(schema: Mapping[str, Any], made: dict[str, Any], where: str) -> list[Schema]:
    """`minProperties` and `maxProperties` beside properties that may be absent: as which of these are there.

    Raises UnservedGrammarError where several properties that are not listed must be there: an answer may repeat one.
    """
    least, most = int(schema.get("minProperties", 0)), schema.get("maxProperties", math.inf)
    listed, required = schema.get("properties", {}), set(schema.get("required", ()))
    optional = [name for name, one in listed.items() if name not in required and one is not False]
    others = schema.get("additionalProperties") is not False or bool(schema.get("patternProperties"))
    missing = least - len(required)
    if others and missing > 1:
        raise UnservedGrammarError(f"{where}/minProperties asks for several properties that are not listed")
    if not optional or (missing <= 0 and most == math.inf):
        return []
    options = _presences(optional, others, missing, most - len(required))
    if len(options) > _MOST_OPTIONS:
        return []  # llguidance refuses it, unless it is a case that it knows
    counts = {keyword: made.pop(keyword) for keyword in ("minProperties", "maxProperties") if keyword in made}
    return _options("object", schema, [{**option, **counts} if others else option for option in options])


def _presences(optional: Sequence[str], others: bool, missing: int, room: float) -> list[dict[str, Any]]:
    """Which of the optional properties may be there together: at least `missing` and at most `room` of them.

    With `others`, the count is left to the properties that are not listed. More than _MOST_OPTIONS are cut short.
    """
    if not others and room >= len(optional):
        return _some({"required": list(names)} for names in itertools.combinations(optional, max(missing, 0)))
    if not others and missing <= 0:
        absent = itertools.combinations(optional, len(optional) - int(max(room, 0)))
        return _some({"properties": dict.fromkeys(names, False)} for names in absent)
    sizes = range(0 if others else missing, int(min(room, len(optional))) + 1)
    subsets = itertools.chain.from_iterable(itertools.combinations(optional, size) for size in sizes)
    return _some(
        {"required": list(names), "properties": {name: False for name in optional if name not in names}}
        for names in subsets
    )


def _some(options: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(itertools.islice(options, _MOST_OPTIONS + 1))
