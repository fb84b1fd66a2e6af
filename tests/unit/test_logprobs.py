"""Logprobs: the model's own probabilities of an answer's tokens, whatever the sampler makes of its logits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, ids, load, request, running, serving

from edged.engine.events import Finished
from edged.engine.grammar import GrammarSource
from edged.engine.kv_cache import KVCache
from edged.engine.logprobs import LEAST, Logprobs
from edged.engine.package import open_package
from edged.engine.sampler import Sampling
from edged.engine.session import ModelSession
from edged.jobs.document import Code, Job, JobError
from edged.jobs.reading import read_submission
from edged.jobs.results import success

PROMPT = (5, 90, 200, 300, 7)
SAMPLINGS = {
    "greedy": Sampling(),
    "drawn": Sampling(temperature=1.5, seed=3, top_k=20),
    "changed": Sampling(
        temperature=2.0, seed=4, repetition_penalty=1.5, logit_bias=((300, 5.0),), frequency_penalty=1.0
    ),
}


def own_logarithms(tokens: list[int]) -> np.ndarray[Any, Any]:
    """Of all tokens after each place of the answer, [answer, vocabulary], by one prefill."""
    package = open_package(MODELS / "phi3")
    session = ModelSession(package, ["CPUExecutionProvider"], 1)
    session.use(KVCache(package, 1, package.context_length))
    given = np.array([[*PROMPT, *tokens]], np.int64)
    logits = session.forward(0, given, [0], given.shape[1])[0, len(PROMPT) - 1 : -1].astype(np.float64)
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def finished(end: object) -> Finished:
    assert isinstance(end, Finished), end
    return end


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_they_are_the_models_own(sampling: str) -> None:
    loaded = serving("phi3")
    with running(loaded) as rig:
        plain = rig.run(request(1, PROMPT, 16, sampling=SAMPLINGS[sampling]))[1]
        end = finished(rig.run(request(2, PROMPT, 16, sampling=SAMPLINGS[sampling], top_logprobs=5))[2])
    assert ids(end) == ids(plain)
    assert finished(plain).logprobs is None
    assert end.logprobs is not None
    expected = own_logarithms(ids(end))
    for place, token, logarithms in zip(end.logprobs, end.tokens, expected, strict=True):
        assert place.chosen.logprob == pytest.approx(logarithms[token], abs=0.15)
        assert place.chosen.bytes == loaded.tokenizer.token_bytes(token)
        best = np.sort(logarithms)[::-1][:5]
        assert [one.logprob for one in place.top] == pytest.approx(list(best), abs=0.15)
    if sampling == "greedy":
        assert all(place.chosen == place.top[0] for place in end.logprobs)


def test_an_ending_token_has_none_and_a_structures_tokens_have_them() -> None:
    loaded = serving("phi3")
    grammar = loaded.grammars.compile(GrammarSource("regex", "a{1,3}"), continued=True)
    job = request(1, PROMPT, 9, ignore_eos=False, continued=True, grammar=grammar, top_logprobs=0)
    with running(loaded) as rig:
        end = finished(rig.run(job)[1])
    assert end.logprobs is not None
    assert b"".join(place.chosen.bytes for place in end.logprobs).decode() == end.text
    assert all(place.top == () for place in end.logprobs)
    with running(loaded) as rig:
        last = ids(rig.run(request(1, PROMPT, 6))[1])[-1]
        end = finished(rig.run(request(2, PROMPT, 20, stop_tokens=frozenset({last}), top_logprobs=0))[2])
    assert end.logprobs is not None
    assert len(end.logprobs) == len(end.tokens) - 1


def test_the_result_has_them_as_openai_has_them() -> None:
    logprobs = Logprobs(2, lambda token: (b"a", b"\xc3", b"\xa9")[token])
    logprobs.note(np.log(np.array([0.5, 0.25, 0.25])), 1)
    logprobs.note(np.array([0.0, -np.inf, -np.inf]), 2)
    end = Finished(1, "x", (1, 2), "stop", 9, 0, 0.0, (1.0, 2.0), 2.0, logprobs=tuple(logprobs.places))
    whole: Any = {"device": "d", "model": "m", "received": 0.0, "now": 1.0, "waited": 0.0}
    result = json.loads(success(Job(id="a", prompt="x"), end, id="a", **whole))
    half, quarter, none = round(float(np.log(0.5)), 6), round(float(np.log(0.25)), 6), LEAST
    a, first, last = (
        {"token": "a", "bytes": [97]},
        {"token": "\ufffd", "bytes": [195]},
        {"token": "\ufffd", "bytes": [169]},
    )
    assert result["logprobs"]["content"] == [
        {**first, "logprob": quarter, "top_logprobs": [{**a, "logprob": half}, {**first, "logprob": quarter}]},
        {**last, "logprob": none, "top_logprobs": [{**a, "logprob": 0.0}, {**first, "logprob": none}]},
    ]


def test_a_row_keeps_them_when_the_session_is_lost() -> None:
    with running(lambda: load(MODELS / "phi3", rows=2)) as rig:
        rig.wait_for_state("serving")
        alone = finished(rig.run(request(1, PROMPT, 30, top_logprobs=1))[1])
        lost: list[int] = []

        def lose(event: Any) -> None:
            if getattr(event, "key", None) == 2 and not lost:
                lost.append(1)
                rig.engine.check_again()

        rig.hook = lose
        again = finished(rig.run(request(2, PROMPT, 30, top_logprobs=1, stream=True))[2])
    assert alone.logprobs is not None
    assert again.logprobs is not None
    assert [place.chosen.bytes for place in again.logprobs] == [place.chosen.bytes for place in alone.logprobs]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logprobs": 5}, "logprobs must be true or false, is 5"),
        ({"top_logprobs": 5}, "top_logprobs needs logprobs: true beside it"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20, is 21"),
        (
            {"logprobs": True, "response_format": {"type": "choice", "choice": ["a"]}},
            "logprobs does not go with a response_format of type 'choice'",
        ),
    ],
    ids=str,
)
def test_a_wrong_job_is_told_what_would_be_right(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as refused:
        read_submission(json.dumps({"id": "a", "prompt": "x", **fields}).encode(), 1 << 20)
    assert (refused.value.code, str(refused.value)) == (Code.INVALID_JOB, message)
