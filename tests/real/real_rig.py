"""What the tests of the real model share: its package, onnxruntime-genai's answers, and the comparison of answers."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from chats import Chat, chats

from edged.engine import ort
from edged.engine.known_answers import NEAR_TIE
from edged.engine.kv_cache import KVCache
from edged.engine.package import open_package
from edged.engine.session import ModelSession

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / ".real-model" / "SmolLM2-135M-Instruct"
GENAI_PYTHON = ROOT / ".venv-genai" / "bin" / "python"
THREADS, ROWS = 2, 8
TOKENS, CONTEXT = 128, 1024
"""Tokens of each answer, which an end token does not end; most tokens of prompt and answer."""


@dataclass(frozen=True)
class Answer:
    """A chat, its prompt in token ids, and onnxruntime-genai's greedy ids."""

    messages: Chat
    prompt: list[int]
    output: list[int]


def genai_answers() -> tuple[Answer, ...]:
    """onnxruntime-genai's answers to all chats, computed now, on this machine and with as many threads."""
    asked = chats()
    command = [str(GENAI_PYTHON), str(Path(__file__).with_name("genai_answers.py")), str(PACKAGE)]
    command += [str(THREADS), str(TOKENS)]
    done = subprocess.run(command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["onnxruntime"] == ort.__version__, "both must compute with the same onnxruntime"
    return tuple(
        Answer(messages, one["prompt"], one["output"]) for messages, one in zip(asked, document["answers"], strict=True)
    )


class BareLoop:
    """A session and its cache of one row: no engine, no batch, no padding."""

    def __init__(self) -> None:
        package = open_package(PACKAGE)
        self._session = ModelSession(package, ["CPUExecutionProvider"], THREADS)
        self._session.use(KVCache(package, 1, CONTEXT))

    def answer(self, prompt: Sequence[int], count: int) -> list[int]:
        """`count` greedy ids: the prompt in one piece, then single tokens, as onnxruntime-genai computes them."""
        new, past, answer = list(prompt), 0, []
        while len(answer) < count:
            logits = self._session.step(0, np.array([new], np.int64), [past], past + len(new))[0]
            past += len(new)
            answer.append(int(np.argmax(logits)))
            new = answer[-1:]
        return answer

    def lead(self, tokens: Sequence[int], one: int, other: int) -> float:
        """How far apart the logits of two tokens are after `tokens`, in standard deviations of that place's logits."""
        logits = self._session.step(0, np.array([tokens], np.int64), [0], len(tokens))[0]
        return float(abs(logits[one] - logits[other]) / logits.std())


@dataclass(frozen=True)
class Divergence:
    """Where an answer leaves the expected one: its chat, the place in the answer, and how near the two tokens are."""

    chat: int
    at: int
    lead: float


@dataclass(frozen=True)
class Comparison:
    """All answers of one way to run the chats beside those expected."""

    way: str
    chats: int
    divergences: tuple[Divergence, ...]

    @property
    def identical(self) -> bool:
        return not self.divergences

    @property
    def only_near_ties(self) -> bool:
        """Whether every answer is identical up to a place where the two tokens were nearly as likely."""
        return all(one.lead < NEAR_TIE for one in self.divergences)

    def __str__(self) -> str:
        text = f"{self.way:<52} {self.chats - len(self.divergences):>3} of {self.chats} identical"
        if not self.divergences:
            return text
        places = [one.at for one in self.divergences]
        return (
            f"{text}; others leave at token {min(places)} to {max(places)}, median {statistics.median(places):g}, "
            f"where the lead is {max(one.lead for one in self.divergences):.3f} sd at most"
        )


def compare(way: str, answers: Sequence[Answer], got: Sequence[list[int]], expected: Sequence[list[int]]) -> Comparison:
    """Compare `got` with `expected`, chat by chat."""
    divergences = []
    loop: BareLoop | None = None
    for chat, (mine, other) in enumerate(zip(got, expected, strict=True)):
        at = next((at for at, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1]), None)
        if at is not None:
            loop = loop or BareLoop()
            lead = loop.lead([*answers[chat].prompt, *other[:at]], mine[at], other[at])
            divergences.append(Divergence(chat, at, lead))
    return Comparison(way, len(got), tuple(divergences))
