"""Judges values by the grammar of a JSON schema, token by token, as answers are made."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HuggingFaceTokenizer

from edged.engine.constraint import ConstraintError, Grammar
from edged.engine.grammar import Grammars, GrammarSource
from edged.engine.json_schema import rewritten
from edged.engine.package import open_package
from edged.engine.schema_form import GrammarError, UnservedGrammarError
from edged.engine.schema_logic import Logic
from edged.engine.tokenizer import Tokenizer

_MOST_PERMUTED = 4
_ORDERS = 4
"""Of its properties, in which a value is tried."""


@dataclass(frozen=True)
class Case:
    """A schema with values that are marked valid or not."""

    name: str
    schema: Any
    tests: tuple[tuple[Any, bool], ...]


def read_cases(file: Path) -> Iterator[Case]:
    """The cases of a file with one JSON object a line: name, schema, and tests with data and valid."""
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            yield Case(case["name"], case["schema"], tuple((test["data"], test["valid"]) for test in case["tests"]))


@dataclass
class Verdict:
    """What came of the cases."""

    served: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Reasons by case."""
    judged: int = 0
    wrong: list[tuple[str, bool, Any]] = field(default_factory=list)
    """Case, whether the value is valid, the value."""
    mask_seconds: list[float] = field(default_factory=list)


class Judge:
    """Judges with the tokenizer of one package."""

    def __init__(self, package: Path) -> None:
        self._tokenizer = Tokenizer(open_package(package))
        self._tokens = HuggingFaceTokenizer.from_file(str(package / "tokenizer.json"))
        self._grammars = Grammars(self._tokenizer)

    def close(self) -> None:
        self._tokenizer.close()

    def judge(self, case: Case, verdict: Verdict) -> None:
        """Add one case to the verdict."""
        try:
            grammar = self._grammars.compile(GrammarSource("json_schema", case.schema), continued=True)
        except (GrammarError, UnservedGrammarError) as error:
            verdict.refused[case.name] = f"{type(error).__name__}: {error}"
            return
        verdict.served += 1
        for value, valid in case.tests:
            verdict.judged += 1
            written = any(
                self._takes(grammar, json.dumps(one, ensure_ascii=False), verdict)
                for one in forms(value, rewritten(case.schema))
            )
            if written != valid:
                verdict.wrong.append((case.name, valid, value))

    def _takes(self, grammar: Grammar, text: str, verdict: Verdict) -> bool:
        """Whether an answer under this grammar can be `text`."""
        matcher = grammar.matcher.deep_copy()
        for token in self._tokens.encode(text, add_special_tokens=False).ids:
            began = time.perf_counter()
            denied = grammar.denied(matcher)
            verdict.mask_seconds.append(time.perf_counter() - began)
            if denied[token]:
                return False
            if not matcher.consume_token(token):
                raise ConstraintError(matcher.get_error())
        return bool(matcher.is_accepting())


def forms(value: Any, schema: Any) -> Iterator[Any]:
    """The value as it is, and as answers have it: its properties in an order of the schema's, 2.0 as 2.

    In JSON, these are the same value.
    """
    logic, seen = Logic(schema), set[str]()
    orders = (_ordered(value, [schema], logic, turn) for turn in range(_ORDERS))
    for one in itertools.chain([value], orders, _permutations(value)):
        for form in (one, _whole(one)):
            if (text := json.dumps(form)) not in seen:
                seen.add(text)
                yield form


def _permutations(value: Any) -> Iterator[Any]:
    """A small object with its properties in every order: alternatives may ask for one that no single schema lists."""
    if isinstance(value, dict) and len(value) <= _MOST_PERMUTED:
        yield from ({name: value[name] for name in names} for names in itertools.permutations(value))


def _whole(value: Any) -> Any:
    """The value with all whole numbers as integers."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _ordered(value: Any, schemas: list[Any], logic: Logic, turn: int) -> Any:
    nodes = list(_applied(schemas, logic))
    if isinstance(value, list):
        return [
            _ordered(one, [schema for node in nodes for schema in _items(node, place)], logic, turn)
            for place, one in enumerate(value)
        ]
    if not isinstance(value, dict):
        return value
    lists = [list(dict.fromkeys([*node.get("properties", {}), *node.get("required", ())])) for node in nodes]
    lists += [[*one] for node in nodes for one in (node.get("const"), *node.get("enum", ())) if isinstance(one, dict)]
    if turn == _ORDERS - 1:
        lists = [list(node.get("required", ())) for node in nodes] + lists
    whole = [names for names in lists if value.keys() <= set(names)]
    listed = whole[turn % len(whole)] if whole else list(dict.fromkeys(itertools.chain.from_iterable(lists)))
    place = {name: at for at, name in enumerate(listed)}
    return {
        name: _ordered(value[name], [schema for node in nodes for schema in _named(node, name)], logic, turn)
        for name in sorted(value, key=lambda name: place.get(name, len(place)))
    }


def _applied(schemas: list[Any], logic: Logic) -> Iterator[Mapping[str, Any]]:
    """The schemas and all that apply to the same value."""
    pending, seen = list(schemas), set[int]()
    while pending:
        schema = pending.pop(0)
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        inner = [one for keyword in ("allOf", "anyOf", "oneOf") for one in schema.get(keyword, ())]
        pending = [logic.target(schema["$ref"]) if "$ref" in schema else None, *inner, *pending]


def _named(node: Mapping[str, Any], name: str) -> list[Any]:
    if name in node.get("properties", {}):
        return [node["properties"][name]]
    return [*node.get("patternProperties", {}).values(), node.get("additionalProperties", True)]


def _items(node: Mapping[str, Any], place: int) -> list[Any]:
    first = node.get("prefixItems", node.get("items"))
    if isinstance(first, list):
        return [first[place]] if place < len(first) else [node.get("items"), node.get("additionalItems")]
    return [first]
