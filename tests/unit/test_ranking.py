"""Ranking documents: each score is the model's own probability of yes against no, as a prefill alone has it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_rig import MODELS, copy_package, load, random_prompt, request, running

from edged.engine.events import Finished
from edged.engine.kv_cache import KVCache
from edged.engine.loaded_model import LoadedModel
from edged.engine.package import open_package
from edged.engine.sequence import Request
from edged.engine.session import ModelSession
from edged.engine.tokenizer import Tokenizer
from edged.jobs.document import Code, Job, JobError
from edged.jobs.preparer import prepare
from edged.jobs.ranking import INSTRUCTION
from edged.jobs.reading import read_submission
from edged.jobs.results import success

WORDS = "the pump valve of runs is open print help option shows a file when and list <|end|> </s>".split()
QUERY = "Is the valve open?"


def texts(count: int, longest: int = 12) -> list[str]:
    chance = random.Random(count)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, longest))) for _ in range(count)]


def ranked(loaded: LoadedModel, documents: list[str], key: int = 1, **fields: Any) -> Request:
    job = Job(**{"id": "a", "query": QUERY, "documents": documents, **fields})
    return prepare(job, key, "a", loaded)


def finished(end: object) -> Finished:
    assert isinstance(end, Finished), end
    return end


def brute_force(name: str, request: Request) -> list[float]:
    """Of each document, by a prefill of its whole prompt, alone."""
    assert request.ranking is not None
    package = open_package(MODELS / name)
    session = ModelSession(package, ["CPUExecutionProvider"], 1)
    session.use(KVCache(package, 1, package.context_length))
    scores = []
    for document in request.ranking.documents:
        ids = np.array([[*request.prompt, *document]], np.int64)
        logits = session.step(0, ids, [0], ids.shape[1])[0].astype(np.float64)
        weights = np.exp(logits - logits.max())
        yes, no = (weights[list(tokens)].sum() for tokens in (request.ranking.yes, request.ranking.no))
        scores.append(float(yes / (yes + no)))
    return scores


@pytest.mark.parametrize("name", ["phi3", "phi3-longrope", "gemma2-wide"])
def test_scores_are_those_of_each_document_alone(name: str) -> None:
    """Also where documents lie on both sides of the LongRoPE switch, and where prompts are split coarsely."""
    documents = [*texts(8), " ".join(texts(20)), *texts(3)]
    documents = documents if name == "phi3-longrope" else texts(9)
    loaded = load(MODELS / name, rows=1, prefill_chunk=64)
    one = ranked(loaded, documents)
    assert one.ranking is not None
    assert one.ranking.shared % loaded.splits.grain == 0
    with running(loaded) as rig:
        end = finished(rig.run(one)[1])
    assert end.scores == pytest.approx(brute_force(name, one), rel=1e-9)
    assert (end.text, end.tokens, end.reason) == ("", (), "stop")
    assert end.prompt_tokens == len(one.prompt) + sum(map(len, one.ranking.documents))


def test_scores_are_the_same_in_any_company() -> None:
    loaded = load(MODELS / "phi3", rows=4, prefill_chunk=16, prefix_bytes=32 << 20)
    jobs = [ranked(loaded, texts(5), 1), ranked(loaded, texts(7), 2), ranked(loaded, texts(5)[:1], 3)]
    beside = [request(key, random_prompt(key, 50), 60) for key in range(4, 8)]
    with running(loaded) as rig:
        alone = [finished(rig.run(job)[job.key]) for job in jobs]
        together = rig.run(*jobs, *beside)
    assert [end.scores for end in alone] == [finished(together[job.key]).scores for job in jobs]
    assert alone[2].scores is not None
    assert alone[0].scores is not None
    assert alone[2].scores == alone[0].scores[:1]


def test_what_prompts_begin_with_is_computed_once() -> None:
    loaded = load(MODELS / "phi3", rows=1)
    job = ranked(loaded, texts(6), instruction="Say yes or no. " * 8)
    assert job.ranking is not None
    with running(loaded) as rig:
        rig.run(job)
        tokens = sum(row.tokens for step in rig.steps.records for row in step.rows)
        assert all(row.prompt for step in rig.steps.records for row in step.rows)
        assert rig.engine.status.prompt_tokens == tokens == len(job.prompt) + job.ranking.tokens
    assert len(job.prompt) > 40


def test_a_row_goes_on_with_its_documents_after_the_session_is_lost() -> None:
    with running(lambda: load(MODELS / "phi3", rows=2)) as rig:
        rig.wait_for_state("serving")
        jobs = [ranked(rig.loaded, texts(6), key) for key in (1, 2)]
        alone = finished(rig.run(jobs[0])[1])
        rig.engine.submit(jobs[1])
        rig.wait_for(lambda event: getattr(event, "key", None) == 2)
        rig.engine.check_again()
        assert finished(rig.ends(1)[2]).scores == alone.scores


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(MODELS / "phi3", rows=1)


def test_the_result_has_the_documents_in_order(loaded: LoadedModel) -> None:
    job = Job(id="a", query=QUERY, documents=["a", "b", "c"])
    end = Finished(1, "", (), "stop", 9, 0, 0.0, (1.0,), 1.0, scores=(0.25, 0.5, 0.25))
    whole: Any = {"device": "d", "model": "m", "received": 0.0, "now": 1.0, "waited": 0.0}
    result = json.loads(success(job, end, id="a", **whole))
    assert [(one["index"], one["score"]) for one in result["ranking"]] == [(1, 0.5), (0, 0.25), (2, 0.25)]
    assert "text" not in result
    assert result["usage"]["completion_tokens"] == 0


def test_the_instruction_is_the_jobs(loaded: LoadedModel) -> None:
    plain, other = ranked(loaded, ["x"]), ranked(loaded, ["x"], instruction="Is it about pumps?")
    assert loaded.tokenizer.encode_text(INSTRUCTION)[1:-1] != []
    assert INSTRUCTION in loaded.tokenizer.decode(plain.prompt)
    assert "Is it about pumps?" in loaded.tokenizer.decode(other.prompt)
    assert QUERY in loaded.tokenizer.decode(other.prompt)


def test_documents_that_do_not_fit_are_named(loaded: LoadedModel) -> None:
    documents = ["x", "pump " * 600, "y", *["valve " * 700] * 6]
    with pytest.raises(JobError) as refused:
        ranked(loaded, documents)
    assert refused.value.code is Code.CONTEXT_EXCEEDED
    assert str(refused.value).startswith("documents.1 with instruction and query has ")


@pytest.mark.parametrize(("fitting", "named"), [(0, 0), (99, 99)])
def test_of_a_hundred_documents_the_first_that_does_not_fit_is_named(
    fitting: int, named: int, loaded: LoadedModel
) -> None:
    documents = ["x"] * fitting + ["pump " * 600] * (100 - fitting)
    with pytest.raises(JobError, match=rf"^documents\.{named} with instruction and query has ") as refused:
        ranked(loaded, documents)
    assert refused.value.code is Code.CONTEXT_EXCEEDED


def test_a_query_that_is_too_long_is_read_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, read = Tokenizer.encode_messages, []

    def counted(self: Tokenizer, *arguments: Any) -> list[int]:
        read.append(arguments)
        return encode(self, *arguments)

    monkeypatch.setattr(Tokenizer, "encode_messages", counted)
    with pytest.raises(JobError):
        ranked(loaded, ["a"] * 100, query="pump " * 5000)
    assert len(read) == 1


def test_a_package_without_a_chat_template_ranks_nothing(tmp_path: Path) -> None:
    package = copy_package("phi3", tmp_path)
    (package / "chat_template.jinja").unlink()
    bare = load(package)
    with pytest.raises(JobError, match="ranking needs a chat template") as refused:
        ranked(bare, ["x"])
    assert refused.value.code is Code.UNSUPPORTED
    bare.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"documents": []}, "documents must be a list of 1 to 100 texts that are not empty, is an empty list"),
        ({"documents": ["x"] * 101}, "documents must be a list of 1 to 100 texts that are not empty, is a list of 101"),
        ({"documents": ["x", ""]}, "documents must be a list of 1 to 100 texts that are not empty"),
        (
            {"documents": ["x", 1]},
            "documents must be a list of 1 to 100 texts that are not empty, but documents.1 is 1",
        ),
        ({"query": None}, "query must be there beside documents, text that is not empty"),
        ({"query": ""}, "query must be text"),
        ({"documents": None, "prompt": "x"}, "query needs documents: send them, or leave it out"),
        ({"documents": None, "query": None, "instruction": "x", "prompt": "x"}, "instruction needs documents"),
        ({"prompt": "x"}, "prompt does not go with documents, which are ranked in place of an answer"),
        ({"stream": True}, "stream does not go with documents"),
        ({"max_tokens": 5}, "max_tokens does not go with documents"),
        ({"temperature": 0.5}, "temperature does not go with documents"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_job_is_told_what_would_be_right(fields: dict[str, Any], message: str) -> None:
    given = {"id": "a", "query": QUERY, "documents": ["x"], **fields}
    document = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(JobError, match=r"^[^\n]*$") as refused:
        read_submission(json.dumps(document).encode(), 1 << 20)
    assert refused.value.code is Code.INVALID_JOB
    assert str(refused.value).startswith(message)
