"""Forced tokens: what a grammar leaves no choice of comes with the token before, and steps decide no id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from engine_rig import MODELS, RUNTIME, Rig, ids, random_prompt, request, running, serving
from patience import eventually

from edged.engine.constraint import Constraint
from edged.engine.events import Finished, Piece
from edged.engine.forced_size import MOST_FORCED, most_forced
from edged.engine.grammar import Grammar, GrammarSource
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request
from edged.engine.structured_drafts import StructuredDrafts
from edged.machine.board import detect
from edged.machine.memory import available
from edged.settings import Settings

needs_int8 = pytest.mark.skipif(RUNTIME < (1, 27), reason="no int8 cache")
ROWS = 4
ORDER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["customer_name", "delivery_address", "items"],
    "properties": {
        "customer_name": {"type": "string", "maxLength": 12},
        "delivery_address": {"type": "string", "maxLength": 12},
        "items": {"type": "array", "items": {"enum": ["screwdriver", "screws", "hammer"]}, "maxItems": 3},
    },
}
SOURCES = {
    "schema": GrammarSource("json_schema", ORDER),
    "text": GrammarSource("regex", "The pressure of pump [0-9]{2} is (high|low), please have a look at it[.!]"),
    "characters": GrammarSource("regex", "압력이 [높낮]습니다 — größer als 温度 [0-9], 漢字かな交じり文[。!]"),
}


def load(folder: Any, **model: Any) -> LoadedModel:
    wanted = {"threads": 1, "rows": ROWS, "kv_cache": "int8", "speculation": "on", **model}
    return load_model(Settings(model=wanted, cache={"ram_bytes": 0}), detect(), available, folder)


class Silent:
    """Proposes nothing, so that forced tokens come one by one."""

    def propose(self, _tokens: list[int], _most: int, _constraint: Constraint | None) -> list[int]:
        return []

    def note(self, drafted: int, taken: int) -> None:
        raise AssertionError((drafted, taken))


@pytest.fixture(scope="module", params=["phi3", pytest.param("gemma2", marks=pytest.mark.slow)])
def on(request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    one = load(MODELS / request.param)
    assert one.speculation_reason is None
    yield one
    one.close()


def one_by_one(one: LoadedModel) -> LoadedModel:
    """The model without its drafts: what is forced is the same."""
    return replace(one, drafts=lambda _request: Silent())


def job(one: LoadedModel, key: int, name: str = "schema", tokens: int = 120, **more: Any) -> Request:
    """A request for an answer under one of SOURCES."""
    grammar = one.grammars.compile(SOURCES[name], continued=False)
    return request(key, random_prompt(key % 100, 20), tokens, ignore_eos=False, grammar=grammar, **more)


def steps(rig: Rig, key: int) -> int:
    """How many steps made tokens of an answer after its first."""
    return sum(row.key == key and not row.prompt for one in rig.steps.records for row in one.rows)


def answer(rig: Rig, wanted: Request) -> Finished:
    end = rig.run(wanted)[wanted.key]
    assert isinstance(end, Finished), end
    return end


@needs_int8
class TestSameIds:
    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=3, repetition_penalty=1.3)])
    @pytest.mark.parametrize("name", SOURCES)
    def test_whether_forced_tokens_are_taken_at_once_or_not(
        self, name: str, sampling: Sampling, on: LoadedModel
    ) -> None:
        with running(one_by_one(on)) as rig:
            single = answer(rig, job(on, 1, name, sampling=sampling))
            assert steps(rig, 1) == len(single.tokens) - 1
        assert (single.speculated, single.forced) == (0, 0)
        with running(on) as rig:
            several = answer(rig, job(on, 1, name, sampling=sampling))
            assert several.forced
            assert several.speculated is not None
            # A step makes one token more than it takes of its draft, but for a draft that ends the answer.
            assert steps(rig, 1) - (len(several.tokens) - 1 - several.forced - several.speculated) in (0, 1)
            counts = (several.forced, several.speculated)
            status = lambda: (rig.engine.status.forced_tokens, rig.engine.status.accepted_drafts)  # noqa: E731
            eventually(lambda: status() == counts, "counted")
        assert (several.tokens, several.text, several.reason) == (single.tokens, single.text, single.reason)
        assert len(several.token_times) == len(several.tokens)

    def test_in_company(self, on: LoadedModel) -> None:
        with running(on) as rig:
            alone = {key: answer(rig, job(on, key)) for key in range(ROWS)}
            together = rig.run(*[job(on, 100 + key) for key in range(ROWS)])
        assert {key: ids(together[100 + key]) for key in alone} == {key: ids(end) for key, end in alone.items()}
        assert any(len(one.rows) > 1 for one in rig.steps.records)

    def test_what_is_forced_takes_a_step_of_its_own_in_company(self, on: LoadedModel) -> None:
        """One row at a time, for as many tokens as all rows would make, and then the others have a token first."""
        with running(one_by_one(on)) as rig:
            alone = answer(rig, job(on, 1, "text"))
            company = request(2, random_prompt(2, 20), 80)
            plain = ids(rig.run(company)[2])
        with running(on) as rig:
            ends = rig.run(*[replace(job(on, 1, "text"), key=key) for key in (10, 11)], replace(company, key=12))
        assert [ids(ends[key]) for key in (10, 11, 12)] == [list(alone.tokens), list(alone.tokens), plain]
        for key in (10, 11):
            end = ends[key]
            assert isinstance(end, Finished)
            assert end.forced
            assert steps(rig, key) < len(end.tokens) - 1
        decoding = [one.rows for one in rig.steps.records if not any(row.prompt for row in one.rows)]
        apart = [len(rows) == 1 and rows[0].tokens > 1 for rows in decoding]
        last = max(at for at, rows in enumerate(decoding) if len(rows) == ROWS - 1)
        assert any(apart[:last])
        assert not any(one and other for one, other in pairwise(apart[:last]))
        assert all(rows[0].tokens >= ROWS - 1 for rows, one in zip(decoding[:last], apart, strict=False) if one)

    def test_after_the_session_was_lost_in_the_middle(self, on: LoadedModel) -> None:
        """It goes on with the next session, where the tokens that it has are read like a prompt."""
        with running(lambda: load(on.package.folder)) as rig:
            undisturbed = answer(rig, job(on, 1, "text", stream=True))
            pieces = len(rig.pieces(1))

            def lose(event: Any) -> None:
                if isinstance(event, Piece) and len(rig.pieces(2)) == pieces // 2:
                    rig.engine.check_again()

            rig.hook = lose
            again = answer(rig, replace(job(on, 1, "text", stream=True), key=2))
            assert sum(getattr(event, "state", None) == "serving" for event in rig.events) == 2
            rig.loaded.close()
        assert (again.tokens, again.text) == (undisturbed.tokens, undisturbed.text)

    @pytest.mark.parametrize("name", SOURCES)
    def test_cut_off_anywhere(self, name: str, on: LoadedModel) -> None:
        with running(on) as rig:
            whole = answer(rig, job(on, 1, name))
            for most in (1, 2, 3, 7, 13, 18, len(whole.tokens) - 1):
                end = answer(rig, replace(job(on, 1, name, most, stream=True), key=most + 1))
                assert end.tokens == whole.tokens[:most]
                assert end.reason == "length"
                assert whole.text.startswith(end.text)
                assert "".join(rig.pieces(most + 1)) == end.text

    def test_off_changes_nothing(self, on: LoadedModel) -> None:
        """The model's own choice of tokens for a text that is forced, as without drafts at all."""
        off = load(on.package.folder, speculation="off")
        with running(off) as rig:
            plain = answer(rig, job(off, 1, "text"))
        off.close()
        with running(on) as rig:
            forced = answer(rig, job(on, 1, "text"))
        assert (plain.speculated, plain.forced) == (None, None)
        assert plain.tokens != forced.tokens  # a random model writes text in odd pieces
        said = on.tokenizer.spell_within(forced.text[: len("The pressure of pump")])
        assert tuple(forced.tokens[-len(forced.tokens) :][: len(said) - 1]) == tuple(said[:-1])


def begin(source: GrammarSource) -> Constraint:
    return grammar_of(source).begin(forcing=True)


def grammar_of(source: GrammarSource) -> Grammar:
    return serving("phi3").grammars.compile(source, continued=True)


def forced_by(constraint: Constraint) -> list[int]:
    return constraint.draft(15, lambda _more: [])


class TestWhatIsForced:
    def test_a_token_that_may_be_part_of_a_longer_one_is_not(self) -> None:
        spell = serving("phi3").tokenizer.spell_within
        word, longer = "the", "ther"
        assert len(spell(word)) == len(spell(longer)) == 1
        assert forced_by(begin(GrammarSource("regex", f"{word}(r|[0-9])"))) == []
        assert forced_by(begin(GrammarSource("regex", f"{word}[0-9]"))) == spell(word)

    def test_where_the_model_may_choose_nothing_is(self) -> None:
        constraint = begin(GrammarSource("regex", "[ab]cd"))
        assert constraint.forced is None
        assert forced_by(constraint) == []

    def test_what_looks_like_a_control_token_is_not(self) -> None:
        tokenizer = serving("phi3").tokenizer
        assert tokenizer.spell_within("<|end|>") == []
        assert forced_by(begin(GrammarSource("regex", r"<\|end\|>[0-9]"))) == []

    @pytest.mark.parametrize(
        ("source", "forced"),
        [
            (GrammarSource("json_schema", {"const": "long " * 800}), True),
            (GrammarSource("json_schema", {"const": "long " * 820}), False),
            (GrammarSource("json_schema", {"enum": ["long " * 820]}), False),
            (GrammarSource("json_schema", {"type": "string", "pattern": "^(abcd){2000}$"}), False),
            (GrammarSource("regex", "The pressure is [0-9]{3}"), True),
            (GrammarSource("regex", "(, as the report of the night shift says, [a-z]{9}){40}"), True),
            (GrammarSource("regex", "(abcd){2000}"), False),
            (GrammarSource("regex", "((ab){50}c){50}"), False),
            (GrammarSource("grammar", 'start: a a\na: b b\nb: "the text"'), False),
        ],
        ids=lambda value: str(value)[:70],
    )
    def test_a_text_that_may_be_long_is_not(self, source: GrammarSource, forced: bool) -> None:
        """To find it takes the longer the longer it is, and every job waits."""
        assert (begin(source).forced is not None) is forced

    def test_each_part_of_a_schema_counts(self) -> None:
        name = "x" * 5000
        for schema in (
            {"required": [name]},
            {"properties": {name: {}}},
            {"items": {"anyOf": [{"const": {"a": name}}]}},
            {"patternProperties": {"^(a{70}){70}$": {}}},
            {"type": "string", "pattern": "a", "minLength": 5000},
        ):
            assert MOST_FORCED < most_forced(schema) < 100_000
        assert most_forced({"description": name, "type": "string", "items": [True, 1]}) < 20

    def test_without_forcing_nothing_is(self) -> None:
        assert grammar_of(GrammarSource("regex", "abcdef[0-9]")).begin().forced is None

    def test_guesses_that_the_grammar_refuses_are_left_out(self) -> None:
        a, b, c = (serving("phi3").tokenizer.spell_within(text)[0] for text in "abc")
        constraint = begin(GrammarSource("regex", "[ab]{2}, with care[.!]"))
        draft = constraint.draft(15, lambda more: [c, b, a] if len(more) < 2 else [])
        assert draft[:2] == [b, b]
        assert draft[2:] == serving("phi3").tokenizer.spell_within(", with care")
        # It was looked ahead only.
        denied = constraint.denied()
        assert not denied[a]
        assert denied[draft[2]]

    def test_a_guess_that_cannot_be_followed_costs_nothing(self) -> None:
        """Not even where the matcher is lost by it."""
        a, c = (serving("phi3").tokenizer.spell_within(text)[0] for text in "ac")
        constraint = begin(GrammarSource("regex", "[ab]{9}"))
        constraint.take(a)
        constraint.look_ahead((c, c, c))
        assert constraint.denied()[c]
        constraint.take(a)
        assert not constraint.denied()[a]

    @pytest.mark.parametrize("unit", ["abcd", "<|end|>"])
    def test_a_text_beyond_the_limits_is_followed_all_the_same(self, unit: str) -> None:
        """What llguidance finds out of it at once is right, though its matcher is of no use afterwards."""
        parts = " ".join(f'"{part}"' for part in unit)
        grammar = grammar_of(GrammarSource("grammar", f"start: ({parts}){{20000}}"))
        constraint = replace(grammar, forces=True).begin(forcing=True)
        tokens = forced_by(constraint)
        tokens = tokens or [serving("phi3").tokenizer.spell_within(unit[0])[0]]
        assert not constraint.denied()[tokens[0]]
        for token in tokens:
            constraint.take(token)


class TestGuesses:
    TEXTS = ('{"', "name", '": "', "North", "wind", '", "', "city", "Bern", ".", "mill")

    def guesses(self, prompt: str, answer: str, allowed: Callable[[int], bool] = lambda _token: True) -> list[str]:
        """What is guessed next, the texts of tokens being TEXTS."""
        numbers = {text: number for number, text in enumerate(self.TEXTS)}
        given = [numbers[text] for text in prompt.split("|")]
        tokens = given + [numbers[text] for text in answer.split("|")]
        drafts = StructuredDrafts(lambda token: self.TEXTS[token].encode(), len(given))

        class AnyText(Constraint):
            def __init__(self) -> None:
                """No grammar at all."""

            def draft(self, most: int, guess: Any) -> list[int]:
                found: list[int] = []
                while len(found) < most and (fit := [one for one in guess(found) if allowed(one)]):
                    found.append(fit[0])
                return found

        return [self.TEXTS[token] for token in drafts.propose(tokens, 15, AnyText())]

    def test_a_value_goes_on_as_in_the_prompt(self) -> None:
        assert self.guesses("mill|North|wind|mill|.", '{"|name|": "|North')[:2] == ["wind", "mill"]

    def test_one_token_is_not_enough_where_it_goes_on_in_two_ways(self) -> None:
        assert self.guesses("North|wind|.|North|mill|.", '{"|name|": "|North') == []

    def test_punctuation_comes_again_and_values_do_not(self) -> None:
        assert self.guesses("mill|.", '{"|name|": "|Bern|", "|city') == []
        assert self.guesses("mill|.", '{"|name|": "') == []
