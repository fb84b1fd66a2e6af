"""Records the known answers of a package with edged's engine, and checks them with onnxruntime-genai if installed."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import edged
from edged.engine import ort
from edged.engine.engine import Engine
from edged.engine.events import Ended, EngineEvent, Finished
from edged.engine.known_answers import (
    BUDGET,
    NEAR_TIE,
    KnownAnswers,
    Question,
    RecordedWith,
    Sample,
    answer_logits,
    lead,
    longest_allowed,
    suspect_runtime,
    write_known_answers,
)
from edged.engine.loaded_model import LoadedModel, load_model
from edged.engine.manifest import make_manifest, write_manifest
from edged.engine.package import POSITIONS, Package, PackageError, open_package
from edged.engine.package_files import held_by
from edged.engine.sequence import Request
from edged.engine.session import one_line
from edged.engine.template import TemplateFaultError, TemplateRefusalError
from edged.engine.tokenizer import PromptError, Tokenizer
from edged.machine.board import Board
from edged.machine.memory import Available
from edged.settings import Settings

QUESTIONS = (
    "To Korean:\npump 7 is on",
    "Command to JSON:\nstop pump 7",
    "Name the days of the week.",
    "Count to ten.",
    "1, 2, 3,",
    "Open valve 3.",
    "Hello!",
    "Go on.",
)
"""Typical prompts of a device, which the demo model answers too. Those with the most compared tokens are kept."""
PROMPT_TOKENS = 24
"""If the chat template makes a longer prompt, the text is used without it: only answer tokens are compared."""
FEWEST_SURE = 4
"""The fewest different tokens, near-ties excluded, that a package's answers must have."""
SAMPLE = (
    "Valve 3 of pump-7 closed at 64.5 °C (limit: 60) after 1,024 cycles. Don't restart!\n"
    '\t{"severity": "error", "component": "net.mqtt_2"}  // 밸브를 닫으세요 — 水泵 Größe naïve 🙂\n'
    "WHY is the QUICK brown fox jumping over 13 lazy dogs, again & again?"
)


def record_known_answers(
    settings: Settings, board: Board, available: Callable[[], Available], path: Path, name: str | None = None
) -> KnownAnswers:
    """Generate answers with the package at `path` and write known_answers.json and the manifest into its folder.

    Raises PackageError: it cannot be loaded, onnxruntime-genai gives other answers, or too few tokens can be compared.
    """
    suspect = suspect_runtime(open_package(path, name))
    if suspect is not None:
        raise PackageError(f"nothing is recorded: {suspect}")
    # The session must be freed before onnxruntime-genai loads the weights again.
    package, tokenizer, questions = _generate_answers(settings, board, available, path, name)
    checked = check_with_genai(package, questions)
    questions = select_questions(questions, checked or [BUDGET] * len(questions), tokenizer.decode)
    sure = set().union(*map(_sure_tokens, questions))
    if len(sure) < FEWEST_SURE:
        raise PackageError(
            f"the model is sure of {len(sure)} different tokens in its answers, fewer than {FEWEST_SURE}: they would "
            "not tell right from wrong, nothing is recorded"
        )
    known = KnownAnswers(
        recorded_with=RecordedWith(
            edged=edged.__version__,
            onnxruntime=ort.__version__,
            onnxruntime_genai=None if checked is None else version("onnxruntime-genai"),
        ),
        tokenizer=Sample(text=SAMPLE, ids=tokenizer.encode_text(SAMPLE)),
        questions=questions,
    )
    write_known_answers(package.folder, known)
    try:
        # Of all files, as a pull of this folder makes it: both have the same identity.
        write_manifest(package.folder, make_manifest(package.folder, held_by(package.folder)))
    except OSError as error:
        raise PackageError(f"no manifest can be written: {(error.strerror or str(error)).lower()}") from None
    return known


def _generate_answers(
    settings: Settings, board: Board, available: Callable[[], Available], path: Path, name: str | None
) -> tuple[Package, Tokenizer, list[Question]]:
    loaded = load_model(settings, board, available, path, name, verify=False)
    inbox: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
    engine = Engine(lambda: loaded, lambda: "", inbox.put, lambda _keys: None)
    engine.start()
    asked: list[tuple[list[int], list[int]]] = []
    try:
        for text in QUESTIONS:
            prompt = _prompt(loaded.tokenizer, text)
            count = min(longest_allowed(loaded.package), loaded.context) - len(prompt)
            if count > 0:
                engine.submit(Request(key=0, prompt=tuple(prompt), max_tokens=count))
                asked.append((prompt, _answer(inbox)))
    finally:
        engine.stop()  # from here on this thread may use the session
    return loaded.package, loaded.tokenizer, [_question(loaded, *one) for one in asked]


def _prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        prompt = tokenizer.encode_messages([{"role": "user", "content": text}])
    except (PromptError, TemplateRefusalError, TemplateFaultError):  # no template, or one that needs other messages
        prompt = []
    return prompt if 0 < len(prompt) <= PROMPT_TOKENS else tokenizer.encode_text(text)


def _answer(inbox: queue.SimpleQueue[EngineEvent]) -> list[int]:
    while True:
        event = inbox.get()
        if isinstance(event, Finished):
            return list(event.tokens)
        if isinstance(event, Ended):
            raise PackageError(f"the model gave no answer: {event.failure}")


def _question(loaded: LoadedModel, prompt: list[int], answer: list[int]) -> Question:
    """A question with the margin of each answer token, computed in the same way as the check does."""
    margins = []
    for token, logits in zip(answer, answer_logits(loaded.session, prompt, answer, loaded.chunk), strict=True):
        leads = lead(logits, token)
        margins.append(round(max(0.0, leads), 3))
        if leads < -NEAR_TIE:
            raise PackageError(
                f"the model answers otherwise when it reads its own answer (token {len(margins)} of it): its graph or "
                f"this onnxruntime {ort.__version__} is wrong, nothing is recorded"
            )
    return Question(prompt=prompt, answer=answer, margins=margins, text=loaded.tokenizer.decode(answer))


def select_questions(
    questions: Sequence[Question], agreed: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[Question]:
    """Select the questions that compare most within BUDGET tokens, their answers cut after the last sure token.

    Only the first `agreed` tokens of each answer are used. A question counts by the different tokens that it is sure
    of and the chosen ones are not: a model that repeats one token would often be right by chance.
    """
    left = []
    for question, count in zip(questions, agreed, strict=True):
        sure = [at for at in question.sure if at < count]
        if sure:
            answer, margins = question.answer[: sure[-1] + 1], question.margins[: sure[-1] + 1]
            left.append(Question(prompt=question.prompt, answer=answer, margins=margins, text=decode(answer)))
    chosen: list[Question] = []
    covered: set[int] = set()
    while left := [one for one in left if sum(q.tokens for q in chosen) + one.tokens <= BUDGET]:
        best = max(left, key=lambda one: len(_sure_tokens(one) - covered) / one.tokens)
        left.remove(best)
        chosen.append(best)
        covered |= _sure_tokens(best)
    return chosen


def _sure_tokens(question: Question) -> set[int]:
    return {question.answer[at] for at in question.sure}


def check_with_genai(package: Package, questions: Sequence[Question]) -> list[int] | None:
    """How many tokens of each answer onnxruntime-genai generates too, None if it cannot: it is not installed, or
    edged rewrote the graph.

    After a near-tie it may continue differently. Raises PackageError if it differs at any other token.
    """
    if POSITIONS in package.graph.inputs:
        return None
    try:
        import onnxruntime_genai as genai
    except ImportError:
        return None
    agreed = []
    try:
        model = genai.Model(str(package.folder))
        answers = [_genai_answer(genai, model, question, package.sliding_window) for question in questions]
    except Exception as error:  # it raises RuntimeError and others
        raise PackageError(f"onnxruntime-genai cannot check the answers: {one_line(error)}") from None
    for question, came in zip(questions, answers, strict=True):
        pairs = enumerate(zip(question.answer, came, strict=False))
        at = next((at for at, pair in pairs if pair[0] != pair[1]), min(len(question.answer), len(came)))
        if at < len(question.answer) and question.margins[at] >= NEAR_TIE:
            raise PackageError(
                f"onnxruntime-genai answers otherwise: token {at + 1} is {came[at : at + 1]}, edged's "
                f"{question.answer[at]}, and that is no near-tie; nothing is recorded; likely cause: one of the two "
                f"does not know this architecture, or this onnxruntime {ort.__version__} computes it wrongly"
            )
        agreed.append(at)
    return agreed


def _genai_answer(genai: Any, model: Any, question: Question, sliding_window: int) -> list[int]:
    params = genai.GeneratorParams(model)
    length = max(question.tokens, sliding_window)
    params.set_search_options(do_sample=False, max_length=length, min_length=0, repetition_penalty=1.0)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([question.prompt], np.int32))
    answer: list[int] = []
    while len(answer) < len(question.answer) and not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    return answer
