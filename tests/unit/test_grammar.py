"""Grammars: what compiles to what answers, what is refused and under which code, and what hostile ones cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_rig import MODELS, copy_package, serving

from edged.engine.constraint import Grammar
from edged.engine.grammar import Grammars, GrammarSource
from edged.engine.grammar_trial import BombError, Trial
from edged.engine.package import open_package
from edged.engine.schema_form import GrammarError, UnservedGrammarError
from edged.engine.tokenizer import Tokenizer
from edged.jobs.document import Code, Job, JobError
from edged.jobs.preparer import prepare
from edged.jobs.reading import read_stored, read_submission


def compiled(kind: Any, definition: Any) -> Grammar:
    return serving("phi3").grammars.compile(GrammarSource(kind, definition), continued=True)


def takes(grammar: Grammar, text: str) -> bool:
    """Whether `text` is an answer."""
    matcher = grammar.matcher.deep_copy()
    tokens = serving("phi3").tokenizer.encode_text(text) if text else []
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


ANSWERS: list[tuple[str, Any, list[str], list[str]]] = [
    ("regex", "[a-c]+", ["a", "cab"], ["", "d", "ab "]),
    ("regex", "a/b", ["a/b"], ["a"]),
    ("regex", 'a"|x\nstart: "z"', ['a"'], ["z", "a"]),
    ("regex", "é{2}", ["éé"], ["é"]),
    ("grammar", 'start: "a"* end\nend: "b" | "c"', ["b", "aaac"], ["a", "aabb"]),
    ("grammar", ' {"grammars": []}', [], []),
    ("json_object", None, ["{}", '{"a": [1, {"b": null}]}', '{\n    "a": 1\n}'], ["[]", "1", '{"a"}', '{"a":1} ']),
    ("json_schema", True, ["1", '"x"', "[]"], ["x"]),
    ("json_schema", {"const": {"b": 1, "a": 2}}, ['{"b":1,"a":2}'], ['{"a":2,"b":1}']),
]


@pytest.mark.parametrize(("kind", "definition", "right", "wrong"), ANSWERS, ids=lambda value: str(value)[:20])
def test_a_grammar_takes_its_answers_and_no_others(
    kind: str, definition: Any, right: list[str], wrong: list[str]
) -> None:
    if not right:  # the language of llguidance's own lists is not the contract's
        with pytest.raises(GrammarError):
            compiled(kind, definition)
        return
    grammar = compiled(kind, definition)
    assert [text for text in right if not takes(grammar, text)] == []
    assert [text for text in wrong if takes(grammar, text)] == []


NAMED = {"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "object", "required": ["c", "d"]}}}
REFUSALS: list[tuple[dict[str, Any], Code, str]] = [
    ({"type": "regex", "regex": "(a"}, Code.INVALID_JOB, "response_format of type 'regex': "),
    ({"type": "regex", "regex": "(?=a)b"}, Code.INVALID_JOB, "response_format of type 'regex': "),
    ({"type": "grammar", "grammar": "start: a"}, Code.INVALID_JOB, "response_format of type 'grammar': "),
    ({"type": "grammar", "grammar": "start: a\na: a"}, Code.INVALID_JOB, "no answer fits"),
    ({"type": "grammar", "grammar": "start: <|nothing|>"}, Code.INVALID_JOB, "response_format of type 'grammar': "),
    ({"type": "json_schema", "json_schema": {"schema": []}}, Code.INVALID_JOB, "the schema must be a schema"),
    ({"type": "json_schema", "json_schema": {"schema": False}}, Code.INVALID_JOB, "the schema false has no answer"),
    ({"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}, Code.INVALID_JOB, "/type must be of null"),
    ({"type": "json_schema", "json_schema": {"schema": {"contains": {}}}}, Code.UNSUPPORTED, "Unimplemented keys"),
    (
        {"type": "json_schema", "json_schema": {"schema": {"minimum": 2, "maximum": 1, "type": "number"}}},
        Code.UNSUPPORTED,
        "Unsatisfiable schema",
    ),
    ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, Code.INVALID_JOB, "no answer has an end"),
    (
        {"type": "json_schema", "json_schema": {"schema": {"minLength": 10**7, "type": "string"}}},
        Code.INVALID_JOB,
        "tokens",
    ),
    (
        {"type": "json_schema", "json_schema": {"schema": NAMED}},
        Code.INVALID_JOB,
        "takes 4 tokens or more, and max_tok",
    ),
    ({"type": "choice", "choice": ["x", "y" * 250]}, Code.INVALID_JOB, "tokens, max_tokens is 2"),
    ({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://a/b"}}}, Code.UNSUPPORTED, "http://a/b"),
    ({"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}, Code.UNSUPPORTED, "passwd"),
]


@pytest.mark.parametrize(("form", "code", "words"), REFUSALS, ids=lambda value: str(value)[:60])
def test_a_job_is_refused_when_it_is_prepared_with_the_reason(form: dict[str, Any], code: Code, words: str) -> None:
    job = Job(id="a", prompt="x", max_tokens=2, response_format=form)  # type: ignore[arg-type]
    with pytest.raises(JobError, match=r"^[^\n]*$") as refused:
        prepare(job, 1, "a", serving("phi3"))
    assert refused.value.code is code
    assert words in str(refused.value)


def test_labels_that_would_take_too_many_steps_are_refused() -> None:
    form: Any = {"type": "choice", "choice": [f"{n * 7919 % 1000000:06}" * 10 for n in range(256)]}
    with pytest.raises(JobError, match="different beginnings in tokens, at most 2048 are served"):
        prepare(Job(id="a", prompt="x", max_tokens=100, response_format=form), 1, "a", serving("phi3"))


def test_a_prompt_that_ends_within_a_character_is_refused() -> None:
    loaded = serving("phi3")
    texts = loaded.tokenizer.answer_bytes()
    assert texts is not None
    half = texts.index("é".encode()[:1])
    form: Any = {"type": "choice", "choice": ["a"]}
    with pytest.raises(JobError, match="the prompt ends within a character"):
        prepare(Job(id="a", prompt=[5, half], max_tokens=2, response_format=form), 1, "a", loaded)


def test_a_stored_job_has_its_schemas_properties_in_their_order() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}, "m": {"properties": {"y": {}, "b": {}}}}}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    document = {"prompt": "x", "response_format": form, "id": "a"}
    submission = read_submission(json.dumps(document).encode(), 1 << 20)
    source = read_stored(submission.canonical, "a").response_format
    assert source is not None
    assert source.source is not None
    assert list(source.source.definition["properties"]) == ["z", "a", "m"]
    again = read_submission(json.dumps(dict(reversed(document.items()))).encode(), 1 << 20)
    assert again.digest == submission.digest


class TestWithout:
    """Packages whose answers cannot be structured, and an edged without llguidance."""

    def test_a_package_without_an_end(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path, eos_token_id=[])
        config = json.loads((package / "tokenizer_config.json").read_text())
        (package / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
        self.refused(package, "names no token that ends an answer")

    def test_a_tokenizer_whose_decoder_does_more_than_join_bytes(self, tmp_path: Path) -> None:
        package = copy_package("phi3", tmp_path)
        tokenizer = json.loads((package / "tokenizer.json").read_text())
        tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
        (package / "tokenizer.json").write_text(json.dumps(tokenizer))
        self.refused(package, "does more than join the bytes")

    def test_llguidance_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        self.refused(MODELS / "phi3", "pip install llguidance")

    def refused(self, package: Path, words: str) -> None:
        tokenizer = Tokenizer(open_package(package))
        try:
            grammars = Grammars(tokenizer)
            assert words in str(grammars.unavailable)
            with pytest.raises(UnservedGrammarError, match=words):
                grammars.compile(GrammarSource("json_object", None), continued=False)
        finally:
            tokenizer.close()


class TestBombs:
    """Each is refused, or compiles, within the bounds of its process."""

    def test_one_that_takes_too_much_memory(self) -> None:
        labels = json.dumps({"grammars": [{"json_schema": {"enum": [f"{n:020}" for n in range(40_000)]}}]})
        with pytest.raises(BombError, match="64 MiB to compile"):
            Trial(memory=64 << 20).reason(labels, {})
        assert Trial().reason(labels, {}) == ""

    @pytest.mark.slow
    def test_one_that_takes_too_long(self) -> None:
        objects = json.dumps({"grammars": [{"json_schema": {"enum": [{f"k{n}": n} for n in range(20_000)]}}]})
        with pytest.raises(BombError, match="1 s of processor time"):
            Trial(seconds=1).reason(objects, {})

    def test_one_that_compiled_is_not_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trial = Trial()
        grammar = json.dumps({"grammars": [{"json_schema": {"type": "null"}}]})
        assert trial.reason(grammar, {}) == ""
        monkeypatch.setattr("sys.executable", "/nonexistent")
        assert trial.reason(grammar, {}) == ""

    @pytest.mark.parametrize(
        "form",
        [
            {"type": "regex", "regex": "(((a{99}){99}){99}){99}"},
            {"type": "regex", "regex": "(.*a.{1000}){10}"},
            {"type": "regex", "regex": "(" * 5000 + "a" + ")" * 5000},
            {"type": "grammar", "grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
            {"type": "grammar", "grammar": "start: start start | "},
            {"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 10**9}}},
            {"type": "json_schema", "json_schema": {"schema": {"type": "array", "maxItems": 10**7}}},
            {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}},
            {"type": "json_schema", "json_schema": {"schema": {"enum": [f"{n:020}" for n in range(45_000)]}}},
        ],
        ids=lambda form: str(form)[:60],
    )
    def test_jobs_with_them_are_prepared_or_refused(self, form: Any) -> None:
        job = Job(id="a", prompt="x", max_tokens=2, response_format=form)
        try:
            prepare(job, 1, "a", serving("phi3"))
        except JobError as error:
            assert error.code in (Code.INVALID_JOB, Code.UNSUPPORTED)
            assert len(str(error)) < 600
