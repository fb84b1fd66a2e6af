"""Checks the demo model's text generator (nothing of the test sets is in training) and the package that is shipped."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "deploy" / "demo-model"
PACKAGE = ROOT / "edged" / "demo" / "model"
MAX_PACKAGE_BYTES = 6_000_000


def _load(name: str) -> ModuleType:
    """A module of deploy/demo-model, which is a folder of scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, SOURCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    names = ("frames", "outside", "generator")
    before = {name: sys.modules.get(name) for name in names}
    *_, module = [_load(name) for name in names]
    yield module
    for name, old in before.items():
        if old is None:
            del sys.modules[name]
        else:
            sys.modules[name] = old


@pytest.fixture(scope="module")
def training(generator: ModuleType) -> list:
    """The very samples that the shipped model was trained on."""
    return list(generator.training_samples(generator.TRAINING_SAMPLES))


@pytest.fixture(scope="module")
def tests(generator: ModuleType) -> dict[tuple[str, str], list]:
    sets = {(task, split): generator.test_samples(task, split) for task in generator.TASKS for split in SPLITS}
    return sets | {("outside", "frames"): generator.test_samples("outside", "frames")}


SPLITS = ("combinations", "frames")


@pytest.mark.slow
def test_no_text_of_a_test_set_is_in_training(generator: ModuleType, training: list, tests: dict) -> None:
    normalise = generator.normalise
    trained = {normalise(sample.payload) for sample in training}
    trained |= {normalise(message["content"]) for sample in training for message in sample.messages}
    for (task, split), samples in tests.items():
        for sample in samples:
            assert normalise(sample.payload) not in trained, (task, split, sample)
            assert normalise(sample.messages[-1]["content"]) not in trained, (task, split, sample)


@pytest.mark.slow
def test_frames_names_and_numbers_of_the_test_sets_are_not_in_training(
    generator: ModuleType, training: list, tests: dict
) -> None:
    for task in generator.TASKS:
        seen = [sample for sample in training if sample.task == task]
        frames = {sample.frame for sample in seen}
        names = {generator.normalise(sample.name) for sample in seen}
        numbers = {sample.number for sample in seen if sample.number}
        for split in SPLITS:
            cases = tests[task, split]
            assert {generator.normalise(sample.name) for sample in cases}.isdisjoint(names)
            assert {sample.number for sample in cases if sample.number}.isdisjoint(numbers)
        assert {sample.frame for sample in tests[task, "combinations"]} <= frames
        assert {sample.frame for sample in tests[task, "frames"]}.isdisjoint(frames)


def test_each_task_has_enough_frames_and_cases(generator: ModuleType, training: list, tests: dict) -> None:
    for task in generator.TASKS:
        assert len({sample.frame for sample in training if sample.task == task}) >= 30
        assert len({sample.frame for sample in tests[task, "frames"]}) >= 6
    for samples in tests.values():
        assert len({generator.normalise(sample.payload) for sample in samples}) == len(samples) >= 500


def test_the_streams_follow_from_their_seeds(generator: ModuleType, training: list, tests: dict) -> None:
    assert list(generator.training_samples(200)) == training[:200]
    assert list(generator.training_samples(200, seed=1)) != training[:200]
    assert generator.test_samples("log", "frames") == tests["log", "frames"]


def test_answers_are_made_of_what_the_text_says(generator: ModuleType, training: list) -> None:
    for sample in training[:5000]:
        if sample.task == "outside":
            assert sample.answer == "unknown"
        elif sample.task == "korean":
            assert sample.answer.endswith("다.")
            assert sample.number in sample.answer
        else:
            fields = json.loads(sample.answer)
            name = fields["component" if sample.task == "log" else "target"]
            assert name in sample.payload
            assert (
                list(fields)
                == {
                    "log": ["severity", "component", "action"],
                    "command": ["intent", "target", "value"],
                }[sample.task]
            )


def test_numbers_are_spoken_right(generator: ModuleType) -> None:
    assert [generator.spoken(number) for number in (0, 13, 20, 47, 100)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty seven",
        "one hundred",
    ]


def test_korean_particles_follow_the_last_syllable(generator: ModuleType) -> None:
    assert generator.with_particles("{S}{이} {S}{은}", "펌프") == "펌프가 펌프는"
    assert generator.with_particles("{S}{이} {S}{은}", "조명") == "조명이 조명은"


def test_the_package_is_whole_and_small() -> None:
    names = {"genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json"}
    names |= {"tokenizer_config.json", "chat_template.jinja", "known_answers.json", "MODEL_CARD.md", "samples.json"}
    files = {path.name: path.stat().st_size for path in PACKAGE.iterdir() if path.is_file()}
    assert names <= set(files)
    assert sum(files.values()) <= MAX_PACKAGE_BYTES


def test_the_samples_to_ask_are_of_the_test_sets(tests: dict) -> None:
    asked = json.loads((PACKAGE / "samples.json").read_text(encoding="utf-8"))
    known = [(sample.task, sample.messages, sample.answer) for samples in tests.values() for sample in samples]
    assert len(asked) >= 9
    assert {entry["task"] for entry in asked} == {"log", "command", "korean", "outside"}
    for entry in asked:
        assert (entry["task"], entry["messages"], entry["answer"]) in known


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(PACKAGE / "tokenizer.json"))


_ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@given(text=_ANY_TEXT)
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    # A special token's own spelling is taken for that token, and is kept too.
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_stand_alone_and_roles_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12345", add_special_tokens=False).tokens == list("12345")
    for token in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"):
        assert tokenizer.encode(token, add_special_tokens=False).tokens == [token]
