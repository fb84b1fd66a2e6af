"""A real model in every way that a job can run: its ids beside onnxruntime-genai's, and answers that make sense."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from daemon_fixtures import EXACT, Client5, Daemon, Place
from engine_rig import ids, load, request, run_at_random, running
from patience import eventually
from real_rig import CONTEXT, GENAI_PYTHON, PACKAGE, ROWS, THREADS, TOKENS, Answer, BareLoop, Comparison, compare
from real_rig import genai_answers as ask_genai
from text_rig import check_any_tokens, check_continuations, check_text
from tokenizers import Tokenizer

from edged.engine.loaded_model import LoadedModel
from edged.engine.prefix_cache import BLOCK_TOKENS, usable_blocks

Ids = list[list[int]]

pytestmark = pytest.mark.skipif(
    not (PACKAGE.exists() and GENAI_PYTHON.exists()),
    reason="the real model or onnxruntime-genai is not here: make test-real",
)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that are printed once all tests are done, also where they fail."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")


@pytest.fixture(scope="module")
def genai() -> tuple[Answer, ...]:
    answers = ask_genai()
    assert len(answers) >= 50
    return answers


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    """As a daemon loads it, without a prefix cache."""
    with closing(load(PACKAGE, rows=ROWS, threads=THREADS, context=CONTEXT)) as model:
        yield model


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel, genai: tuple[Answer, ...]) -> Ids:
    """edged's ids of each chat when no other job is there."""
    with running(loaded) as rig:
        return [ids(rig.run(request(0, one.prompt, TOKENS))[0]) for one in genai]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    place = Place()
    place.broker.start()
    yield place
    place.close()


@pytest.fixture(scope="module")
def daemon(place: Place) -> Daemon:
    settings = {"model__path": str(PACKAGE), "model__threads": str(THREADS), "model__rows": str(ROWS)}
    settings |= {"model__context": str(CONTEXT), "cache__allow_pin": "true", "cache__ram_bytes": str(1 << 30)}
    settings |= {"cache__disk_bytes": str(1 << 30), "cache__daily_write_bytes": str(1 << 30)}
    return place.daemon(**settings).start()


@pytest.fixture(scope="module")
def client(place: Place, daemon: Daemon) -> Client5:
    return place.client()


def test_the_package_has_known_answers(loaded: LoadedModel) -> None:
    assert loaded.verified is not None
    assert loaded.verified.compared > 10


def test_chats_become_the_prompts_of_genai(loaded: LoadedModel, genai: tuple[Answer, ...]) -> None:
    for one in genai:
        assert loaded.tokenizer.encode_messages(one.messages) == one.prompt


def test_ids_are_those_of_genai(loaded: LoadedModel, genai: tuple[Answer, ...], alone: Ids, table: list[str]) -> None:
    """Identical where one row rounds as several do, as with VNNI, and at near ties only where it does not.

    There edged computes a lone row beside a second one, so that company changes nothing, and onnxruntime-genai does
    not. Where that changed an answer, a loop that does as onnxruntime-genai does must have its ids: nothing else may
    differ.
    """
    expected = [one.output for one in genai]
    comparison = compare("edged, alone, beside onnxruntime-genai", genai, alone, expected)
    table.append(str(comparison))
    if loaded.bits.lone_row_differs:
        table.append("  (one row has other last bits than several on this processor)")
        assert comparison.only_near_ties, comparison.divergences
        changed = [genai[divergence.chat] for divergence in comparison.divergences]
        loop = BareLoop()
        same = compare(
            "edged's session, single rows, beside onnxruntime-genai",
            changed,
            [loop.answer(one.prompt, TOKENS) for one in changed],
            [one.output for one in changed],
        )
        table.append(str(same))
        assert same.identical, same.divergences
    else:
        assert comparison.identical, comparison.divergences


def test_company_changes_no_id(loaded: LoadedModel, genai: tuple[Answer, ...], alone: Ids, table: list[str]) -> None:
    """Jobs come while others run, and as many again are cancelled in the middle."""
    assert not loaded.bits.batches_differ, "this processor rounds each batch size otherwise"
    chance = random.Random(8)
    jobs = [request(key, one.prompt, TOKENS, stream=True) for key, one in enumerate([*genai, *genai])]
    chance.shuffle(jobs)
    with running(loaded) as rig:
        ends = run_at_random(rig, jobs, chance, set(range(len(genai), 2 * len(genai))))
        most = max(len(keys) for keys in rig.running)
        together = [ids(ends[key]) for key in range(len(genai))]
    assert most == ROWS
    note(table, compare(f"edged, among {ROWS} rows that come and go, beside alone", genai, together, alone))


def test_ids_over_mqtt(client: Client5, genai: tuple[Answer, ...], alone: Ids, table: list[str]) -> None:
    got = answers_over_mqtt(client, "sent", genai)
    note(table, compare("edged, over MQTT, beside alone", genai, got, alone))


def test_ids_from_a_prefix_on_disk(
    daemon: Daemon, client: Client5, genai: tuple[Answer, ...], alone: Ids, table: list[str]
) -> None:
    """The process that computed the prefixes is killed; another one reads them from its disk."""
    for number, one in enumerate(genai):
        client.send({"id": f"pin-{number}", "prompt": one.prompt, "max_tokens": 1, "cache": {"pin": True}})
    for number in range(len(genai)):
        assert client.result(f"pin-{number}")["state"] == "succeeded"
    blocks = len({tuple(one.prompt[: n * BLOCK_TOKENS]) for one in genai for n in cached(one)})
    eventually(lambda: len(list((daemon.state_dir / "prefixes").glob("*.kv"))) >= blocks, f"{blocks} blocks on disk")
    daemon.end(signal.SIGKILL)
    daemon.start()
    got = answers_over_mqtt(client, "again", genai)
    found = [client.result(f"again-{number}")["usage"]["cached_tokens"] for number in range(len(genai))]
    assert found == [len(cached(one)) * BLOCK_TOKENS for one in genai]
    note(table, compare("edged, prefixes from disk after kill -9, beside alone", genai, got, alone))


@pytest.mark.parametrize(
    ("system", "question", "words"),
    [
        (None, "What is the capital of France? Answer with one word.", ["Paris"]),
        ("You are a translator. Answer in French.", "Good morning!", ["Bonjour"]),
        (
            None,
            "Extract the name and age from this sentence as JSON: Maria is 34 years old and lives in Bern.",
            ['"name": "Maria"', '"age": 34'],
        ),
    ],
    ids=["capital", "French", "name and age"],
)
def test_answers_make_sense(
    client: Client5, table: list[str], system: str | None, question: str, words: list[str]
) -> None:
    """Questions that a model this small gets right: 135 M parameters, twice quantized, know little French."""
    messages = [{"role": "system", "content": system}] if system else []
    job = {"id": words[0].strip('"')[:4], "messages": [*messages, {"role": "user", "content": question}]}
    client.send({**job, "max_tokens": 40})
    text = client.result(job["id"])["text"]
    table.append(f"{question}\n    {text!r}")
    assert all(word in text for word in words), text


def note(table: list[str], comparison: Comparison) -> None:
    """Put the comparison into the table; every answer must be identical."""
    table.append(str(comparison))
    assert comparison.identical, comparison.divergences


def answers_over_mqtt(client: Client5, name: str, genai: tuple[Answer, ...]) -> Ids:
    for number, one in enumerate(genai):
        client.send({"id": f"{name}-{number}", "messages": one.messages, "max_tokens": TOKENS, **EXACT})
    return [list(client.result(f"{name}-{number}")["token_ids"]) for number in range(len(genai))]


def cached(answer: Answer) -> range:
    """Numbers of blocks that a prefix of the prompt can have."""
    return range(1, usable_blocks(len(answer.prompt)) + 1)


def test_pieces_of_any_tokens_join_to_their_text() -> None:
    made = Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))
    check_any_tokens(made, random.Random(0))
    check_text(made, random.Random(1))
    check_continuations(made, random.Random(2))
