"""Structured answers in the engine: each is what its grammar says, or was cut off, whatever the model wants."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, copy_package, ids, load, random_prompt, request, running, serving
from schema_oracle import allows

from edged.engine.branches import longest_copy
from edged.engine.events import Ended, Finished
from edged.engine.grammar import Grammars, GrammarSource
from edged.engine.kv_cache import KVCache
from edged.engine.labels import Labels, Scores
from edged.engine.loaded_model import LoadedModel
from edged.engine.package import open_package
from edged.engine.sampler import Sampling
from edged.engine.sequence import Request
from edged.engine.session import ModelSession
from edged.jobs.document import Job
from edged.jobs.preparer import prepare

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "mood": {"type": ["string", "null"], "enum": ["good", None]},
    },
    "required": ["name", "age", "tags", "mood"],
    "additionalProperties": False,
}
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=1.0, seed=1),
    "hot": Sampling(temperature=2.0, top_p=0.9, top_k=50, seed=2),
    "penalties": Sampling(temperature=1.5, seed=3, repetition_penalty=1.3, frequency_penalty=1.0, min_p=0.01),
    "bias": Sampling(presence_penalty=2.0, logit_bias=((300, 100.0), (301, -100.0))),
}
GREEK = "[α-ω]{5}"
"""Two bytes each: with few tokens, a character has two of them."""


def wanted(loaded: LoadedModel, key: int, kind: Any, definition: Any, max_tokens: int = 300, **more: Any) -> Request:
    """A request for a structured answer."""
    grammar = loaded.grammars.compile(GrammarSource(kind, definition), continued=True)
    prompt = loaded.tokenizer.encode_text("Say something:")
    given = {"ignore_eos": False, "continued": True, "grammar": grammar, **more}
    return request(key, prompt, max_tokens, **given)


def chosen(loaded: LoadedModel, key: int, *texts: str, continued: bool = True, **more: Any) -> Request:
    """A request for one of these labels."""
    prompt = loaded.tokenizer.encode_text("Say something:")
    spelt = [loaded.tokenizer.spell(text, prompt if continued else ()) for text in texts]
    labels = Labels(texts, tuple(tuple(tokens or ()) for tokens in spelt), tuple(sorted(loaded.tokenizer.eos)))
    return request(key, prompt, 60, ignore_eos=False, continued=continued, labels=labels, **more)


def finished(end: Finished | Ended) -> Finished:
    assert isinstance(end, Finished), end
    return end


def answer(end: Finished | Ended) -> str:
    assert finished(end).reason == "stop"
    return finished(end).text


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["phi3", "llama3"])
def test_an_answer_is_valid_however_its_tokens_are_chosen(name: str, sampling: str) -> None:
    loaded = serving(name)
    with running(loaded) as rig:
        end = rig.run(wanted(loaded, 1, "json_schema", PERSON, sampling=SAMPLINGS[sampling]))[1]
    value = json.loads(answer(end))
    assert allows(PERSON, value)
    assert list(value) == ["name", "age", "tags", "mood"]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 8, 13])
def test_an_answer_that_is_cut_off_says_so_and_has_whole_characters(max_tokens: int) -> None:
    loaded = serving("phi3")
    with running(loaded) as rig:
        end = finished(rig.run(wanted(loaded, 1, "regex", GREEK, max_tokens))[1])
    complete = re.fullmatch(GREEK, end.text) is not None
    assert end.reason == ("stop" if complete else "length")
    assert re.fullmatch("[α-ω]{0,5}", end.text)
    assert complete or len(end.tokens) == max_tokens


def test_pieces_join_to_the_answer_and_are_whole_characters() -> None:
    loaded = serving("phi3")
    with running(loaded) as rig:
        end = rig.run(wanted(loaded, 1, "regex", GREEK, stream=True))[1]
        pieces = rig.pieces(1)
    assert len(pieces) == 5
    assert "".join(pieces) == answer(end)


def test_rows_of_several_grammars_and_of_none_keep_to_their_own() -> None:
    loaded = serving("phi3", rows=4)
    jobs = [
        chosen(loaded, 1, "on", "only", "off"),
        wanted(loaded, 2, "regex", "[0-9]{3}-[0-9]{4}", sampling=Sampling(temperature=1.0, seed=5)),
        wanted(loaded, 3, "json_object", None, 40),
        wanted(loaded, 4, "grammar", 'start: "a" b+\nb: "bb" | "c"', sampling=Sampling(temperature=3.0, seed=1)),
        wanted(loaded, 5, "json_schema", PERSON, sampling=Sampling(temperature=1.0, seed=6)),
        request(6, loaded.tokenizer.encode_text("free"), 40, ignore_eos=False),
    ]
    with running(loaded) as rig:
        together = rig.run(*jobs)
        again = [wanted(loaded, 5, "json_schema", PERSON, sampling=Sampling(temperature=1.0, seed=6)), jobs[5], jobs[0]]
        alone = [rig.run(job)[job.key] for job in again]
    assert answer(together[1]) in ("on", "only", "off")
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", answer(together[2]))
    assert finished(together[3]).text.startswith("{")
    assert re.fullmatch("a(bb|c)+", finished(together[4]).text)
    assert allows(PERSON, json.loads(answer(together[5])))
    assert [ids(end) for end in alone] == [ids(together[5]), ids(together[6]), ids(together[1])]
    assert finished(alone[2]).probabilities == finished(together[1]).probabilities


@pytest.mark.slow
def test_two_hundred_schemas_at_once_are_kept_apart() -> None:
    loaded = serving("phi3", rows=8)
    grammars = Grammars(loaded.tokenizer)  # without a process of its own for each
    prompt = loaded.tokenizer.encode_text("Say something:")
    jobs = []
    for n in range(200):
        one = {"type": "object", "properties": {f"p{n}": {"const": n}}, "required": [f"p{n}"]}
        source = GrammarSource("json_schema", {**one, "additionalProperties": False})
        grammar = grammars.compile(source, continued=True)
        jobs.append(request(n, prompt, 90, ignore_eos=False, continued=True, grammar=grammar))
    with running(loaded) as rig:
        ends = rig.run(*jobs)
    assert [json.loads(answer(ends[n])) for n in range(200)] == [{f"p{n}": n} for n in range(200)]


def test_an_answer_continues_the_last_message_under_its_grammar() -> None:
    """Without a space that the message has no place for."""
    loaded = load(MODELS / "phi3")  # whose template no other test has closed
    chat: Any = [{"role": "user", "content": "Is it on?"}, {"role": "assistant", "content": "It is o"}]
    form: Any = {"type": "regex", "regex": "n|ff"}
    job = Job(id="a", messages=chat, continue_final_message=True, response_format=form)
    with running(loaded) as rig:
        end = rig.run(prepare(job, 1, "a", loaded))[1]
    assert answer(end) in ("n", "ff")


def test_an_answer_ends_with_its_last_token_where_nothing_can_follow() -> None:
    loaded = serving("phi3")
    with running(loaded) as rig:
        closed = finished(rig.run(wanted(loaded, 1, "regex", "yes|no"))[1])
        open_end = finished(rig.run(wanted(loaded, 2, "regex", "a{1,30}"))[2])
    assert closed.tokens[-1] not in loaded.tokenizer.eos
    assert closed.reason == open_end.reason == "stop"
    assert re.fullmatch("a{1,30}", open_end.text)
    assert open_end.tokens[-1] in loaded.tokenizer.eos or len(open_end.text) == 30


def test_a_space_that_the_decoder_drops_at_the_beginning_is_no_part_of_the_answer(tmp_path: Path) -> None:
    package = copy_package("phi3", tmp_path)
    tokenizer = json.loads((package / "tokenizer.json").read_text())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}  # as SentencePiece's decoders do
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], strip]}
    (package / "tokenizer.json").write_text(json.dumps(tokenizer))
    (package / "known_answers.json").unlink()  # of the other decoder
    loaded = load(package)
    assert loaded.tokenizer.strips_space
    for kind, definition, right in (
        ("json_schema", {"const": {"a": 1}}, r'\{\s*"a"\s*:\s*1\s*\}'),
        ("regex", " ?x{3}", " ?xxx"),
        ("regex", "  xxx", "  xxx"),
        ("grammar", 'start: " a" | "b"', " a|b"),
    ):
        grammar = loaded.grammars.compile(GrammarSource(kind, definition), continued=False)  # type: ignore[arg-type]
        with running(loaded) as rig:
            prompt = loaded.tokenizer.encode_text("Say something:")
            end = rig.run(request(1, prompt, 60, ignore_eos=False, grammar=grammar))[1]
        assert re.fullmatch(right, answer(end)), (definition, answer(end))
    grammar = loaded.grammars.compile(GrammarSource("json_object", None), continued=False)
    (space,) = loaded.tokenizer.encode_text(" ")
    assert not grammar.denied(grammar.matcher)[space]


def test_a_row_goes_on_under_its_grammar_after_the_session_is_lost() -> None:
    job: dict[str, Any] = {"sampling": Sampling(temperature=1.0, seed=9), "stream": True}
    with running(lambda: load(MODELS / "phi3", rows=2)) as rig:
        rig.wait_for_state("serving")
        alone = rig.run(wanted(rig.loaded, 1, "json_schema", PERSON, **job))[1]
        lost: list[int] = []

        def lose(event: Any) -> None:
            if getattr(event, "key", None) == 2 and not lost:
                lost.append(1)
                rig.engine.check_again()

        rig.hook = lose
        again = rig.run(wanted(rig.loaded, 2, "json_schema", PERSON, **job))[2]
    assert lost
    assert allows(PERSON, json.loads(answer(again)))
    assert ids(again) == ids(alone)


def test_a_grammar_that_leads_nowhere_costs_its_own_job_alone() -> None:
    loaded = serving("phi3", rows=2)
    # After "a" nothing can follow: what is wanted there matches no text.
    nowhere = wanted(loaded, 1, "grammar", 'start: "a" X\nX: /b+/ & /c+/')
    with running(loaded) as rig:
        ends = rig.run(nowhere, wanted(loaded, 2, "regex", "yes|no"))
    end = ends[1]
    assert isinstance(end, Ended)
    assert end.failure is not None
    assert end.failure.startswith("the grammar fails: ")
    assert answer(ends[2]) in ("yes", "no")


def test_tokens_without_text_are_never_part_of_an_answer() -> None:
    loaded = serving("phi3")
    special = loaded.tokenizer.answer_bytes()
    assert special is not None
    silent = next(token for token, text in enumerate(special) if not text and token not in loaded.tokenizer.eos)
    urged = Sampling(logit_bias=((silent, 100.0),))
    job = wanted(loaded, 1, "grammar", f'start: <[{silent}]> | "b"', sampling=urged)
    with running(loaded) as rig:
        assert answer(rig.run(job)[1]) == "b"


class TestLabels:
    """A choice: the labels' probabilities, as the model's own logits have them."""

    TEXTS = ("on", "only", "off", "o", "a fan, on")

    @pytest.mark.parametrize("name", ["phi3", "llama-position-ids"])
    def test_they_are_those_of_each_label_alone(self, name: str) -> None:
        loaded = serving(name)
        job = chosen(loaded, 1, *self.TEXTS)
        assert job.labels is not None
        with running(loaded) as rig:
            end = finished(rig.run(job)[1])
        expected = brute_force(name, job.prompt, job.labels)
        assert end.probabilities == pytest.approx(expected, rel=2e-3)
        assert end.text == self.TEXTS[int(np.argmax(expected))]
        assert list(end.tokens) == loaded.tokenizer.spell(end.text, job.prompt)
        assert end.reason == "stop"

    def test_a_label_is_drawn_as_often_as_it_is_probable(self) -> None:
        loaded = serving("phi3", rows=4)
        with running(loaded) as rig:
            sure = finished(rig.run(chosen(loaded, 0, *self.TEXTS))[0]).probabilities
            jobs = [chosen(loaded, n, *self.TEXTS, sampling=Sampling(temperature=1.0, seed=n)) for n in range(1, 201)]
            drawn = [finished(end).text for end in rig.run(*jobs).values()]
        assert sure is not None
        for text, probability in zip(self.TEXTS, sure, strict=True):
            spread = 4 * (probability * (1 - probability) / len(drawn)) ** 0.5
            assert abs(drawn.count(text) / len(drawn) - probability) <= spread + 1e-9

    def test_each_beginning_is_computed_once(self) -> None:
        tokens = ((5, 6, 7), (5, 6), (5, 8), (9,))
        scores = Scores(Labels(("abc", "ab", "ad", "e"), tokens, (2,)))
        due, seen = scores.note(np.zeros(10, np.float32)), [()]
        while due is not None:
            seen.append(due)
            due = scores.note(np.zeros(10, np.float32))
        assert seen == [(), (5,), (5, 6), (5, 6, 7), (5, 8), (9,)]
        # Of uniform logits a label of n tokens has 10^-(n + 1).
        weights = np.array([1e-4, 1e-3, 1e-3, 1e-2])
        assert scores.probabilities == pytest.approx(weights / weights.sum())

    def test_ends_of_labels_are_noted_beside_the_one_that_is_due(self) -> None:
        """Those of which all but the last token is computed, and from which no label goes on."""
        scores = Scores(
            Labels(("abc", "abd", "a", "e", "fg", "h"), ((5, 6, 7), (5, 6, 8), (5,), (9,), (3, 4), (1,)), (2,))
        )
        flat = np.zeros(10, np.float32)
        assert scores.ends_beside(8) == []  # the prompt's end is due
        due, steps = scores.note(flat), []
        while due is not None:
            steps.append((due, beside := scores.ends_beside(2)))
            for label in beside:
                scores.note_of(label, flat)
            due = scores.note(flat)
        assert steps == [
            ((1,), [(9,)]),
            ((3,), []),
            ((3, 4), []),
            ((5,), []),
            ((5, 6), []),
            ((5, 6, 7), [(5, 6, 8)]),
        ]
        weights = np.array([1e-4, 1e-4, 1e-2, 1e-2, 1e-3, 1e-2])
        assert scores.probabilities == pytest.approx(weights / weights.sum())

    @pytest.mark.parametrize("name", ["phi3", "phi3-longrope", "llama-position-ids"])
    def test_free_slots_take_labels_and_change_no_probability(self, name: str) -> None:
        texts = (*self.TEXTS, *"abcdefg")
        steps, probabilities = [], []
        for rows in (1, 3, 8):
            loaded = load(MODELS / name, rows=rows)
            with running(loaded) as rig:
                jobs = [chosen(loaded, key, *texts) for key in range(rows)]
                alone = finished(rig.run(jobs[0])[0])
                steps.append(len(rig.steps.records))
                together = rig.run(*jobs[1:]) if rows > 1 else {}
            probabilities += [alone.probabilities, *(finished(end).probabilities for end in together.values())]
            loaded.close()
        assert steps[0] > steps[1] >= steps[2]
        assert set(probabilities) == {probabilities[0]}

    def test_a_long_prompt_is_not_copied(self) -> None:
        """It would take longer than the steps that this saves."""
        loaded = serving("phi3", rows=8)
        short = chosen(loaded, 1, *self.TEXTS, *"abc")
        long = replace(short, key=2, prompt=tuple(random_prompt(2, longest_copy(loaded.package, loaded.cache) + 1)))
        with running(loaded) as rig:
            rig.run(short)
            rig.run(long)
            widths = {
                key: max(
                    row.tokens for one in rig.steps.records for row in one.rows if row.key == key and not row.prompt
                )
                for key in (1, 2)
            }
        assert widths[1] > 1
        assert widths[2] == 1

    def test_pieces_and_a_label_with_more_than_bytes(self) -> None:
        loaded = serving("phi3")
        with running(loaded) as rig:
            end = rig.run(chosen(loaded, 1, "né 안녕", stream=True))[1]
            assert rig.pieces(1) == [answer(end)] == ["né 안녕"]
        assert finished(end).probabilities == (1.0,)


def brute_force(name: str, prompt: Sequence[int], labels: Labels) -> list[float]:
    """Of each label, by a prefill of the prompt with all its tokens, alone."""
    package = open_package(MODELS / name)
    session = ModelSession(package, ["CPUExecutionProvider"], 1)
    session.use(KVCache(package, 1, package.context_length))
    logarithms = []
    for tokens in labels.tokens:
        ids = np.array([[*prompt, *tokens]], np.int64)
        logits = session.forward(0, ids, [0], ids.shape[1])[0, len(prompt) - 1 :].astype(np.float64)
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        said = sum(logits[place, token] for place, token in enumerate(tokens))
        logarithms.append(said + np.logaddexp.reduce(logits[len(tokens), list(labels.eos)]))
    weights = np.exp(np.array(logarithms) - max(logarithms))
    return [float(weight) for weight in weights / weights.sum()]
