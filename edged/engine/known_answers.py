"""Known answers: checks at every load that a package answers as it did when they were recorded.

Damaged weights, a wrong tokenizer, or a runtime that computes a graph wrongly cause wrong answers, not errors. So a
package comes with a few prompts and its greedy answers. The check runs prompt and answer through the model together,
which costs no more than a prefill, and the most probable token must be the recorded one at each position.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edged.durable import write_durably
from edged.engine import ort
from edged.engine.package import Package, PackageError, read_json
from edged.engine.session import ModelSession, one_line
from edged.engine.tokenizer import PromptError, Tokenizer

FILE = "known_answers.json"
BUDGET = 32
"""Tokens of all questions and answers together: about one second for Phi-3-mini on two cores."""
NEAR_TIE = 0.35
"""Margin over the second token, in standard deviations of the position's logits, below which it is not compared.
Another correct computation may choose the other token: 0.31 was measured with float32 activations in place of int8."""
_SHOWN_TOKENS = 6
_WRONG_TOKENIZER = "tokenizer.json is of another package or damaged: copy the package again"

_Token = Annotated[int, Field(ge=0, lt=1 << 24)]
_Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,64}$")]
_Text = Annotated[str, Field(max_length=4096)]


class WrongAnswersError(PackageError):
    """The model or its tokenizer does not give the known answers. `fault` and `cause` make up the message."""

    def __init__(self, fault: str, cause: str) -> None:
        super().__init__(f"{fault}; likely cause: {cause}")
        self.fault = fault


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RecordedWith(_Strict):
    """Versions at the time of recording; onnxruntime-genai's if it gave the same answers."""

    edged: _Version
    onnxruntime: _Version
    onnxruntime_genai: _Version | None = None


class Sample(_Strict):
    """A text and its token ids."""

    text: _Text
    ids: list[_Token] = Field(min_length=1, max_length=4096)


class Question(_Strict):
    """A prompt and its greedy answer in token ids, the margin of each answer token, and the answer's text."""

    prompt: list[_Token] = Field(min_length=1, max_length=BUDGET)
    answer: list[_Token] = Field(min_length=1, max_length=BUDGET)
    margins: list[Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]
    """Margin over the second token in standard deviations of the logits, 0 if the token is not the first."""
    text: _Text

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def sure(self) -> list[int]:
        """Positions of the answer that are not near-ties."""
        return [at for at, margin in enumerate(self.margins) if margin >= NEAR_TIE]


class KnownAnswers(_Strict):
    """The document in known_answers.json."""

    format: Literal[1] = 1
    recorded_with: RecordedWith
    tokenizer: Sample
    questions: list[Question] = Field(min_length=1, max_length=BUDGET)

    @model_validator(mode="after")
    def _fits_together(self) -> KnownAnswers:
        if any(len(question.margins) != len(question.answer) for question in self.questions):
            raise ValueError("margins must be as many as the answer's tokens")
        if not any(question.sure for question in self.questions):
            raise ValueError("every margin is a near-tie: nothing could be compared")
        if self.tokens > BUDGET:
            raise ValueError(f"questions and answers have {self.tokens} tokens, up to {BUDGET} are taken")
        return self

    @property
    def tokens(self) -> int:
        """Tokens of all questions and answers."""
        return sum(question.tokens for question in self.questions)

    @property
    def longest(self) -> int:
        """Tokens of the longest question with its answer: the cache must hold them."""
        return max(question.tokens for question in self.questions)


@dataclass(frozen=True)
class Verified:
    """The package answers as recorded. `tokens` were computed; `compared` of them are not near-ties."""

    tokens: int
    compared: int
    seconds: float


def read_known_answers(package: Package) -> KnownAnswers | None:
    """The known answers of a package, None if it has none. Raises PackageError when the file is invalid."""
    if not os.path.lexists(package.folder / FILE):
        return None
    try:
        known = KnownAnswers.model_validate(read_json(package.folder, FILE))
        used = [known.tokenizer.ids, *(tokens for one in known.questions for tokens in (one.prompt, one.answer))]
        highest = max(itertools.chain.from_iterable(used))
        if highest >= package.vocabulary:
            raise ValueError(f"token {highest} is not in the model's vocabulary of {package.vocabulary}")
        if known.longest > longest_allowed(package):
            raise ValueError(f"a question has {known.longest} tokens, this model {longest_allowed(package)}")
    except PackageError:
        raise
    except ValueError as error:
        reason = _explain(error) if isinstance(error, ValidationError) else str(error)
        raise PackageError(
            f"{FILE}: {reason}: copy the package again, or record anew (edged model verify --record)"
        ) from None
    return known


def write_known_answers(folder: Path, known: KnownAnswers) -> None:
    """Write the package's file, atomically and durably. Raises PackageError when it cannot be written."""
    try:
        write_durably(folder / FILE, json.dumps(known.model_dump(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise PackageError(f"{folder / FILE} cannot be written: {(error.strerror or str(error)).lower()}") from None


def longest_allowed(package: Package) -> int:
    """Most tokens of a question with its answer: the check uses only one rope table."""
    return min(BUDGET, package.context_length, package.rope_switch or BUDGET)


def check_tokenizer(known: KnownAnswers, tokenizer: Tokenizer) -> None:
    """Raises WrongAnswersError when the tokenizer gives other ids or another text than recorded."""
    text, ids = known.tokenizer.text, known.tokenizer.ids
    try:
        came = tokenizer.encode_text(text)
    except PromptError:
        came = []
    if came != ids:
        at = next((at for at, pair in enumerate(zip(ids, came, strict=False)) if pair[0] != pair[1]), len(came))
        raise WrongAnswersError(
            f"the tokenizer is not the one that the known answers were recorded with: of {text[:24]!r}… it makes token "
            f"{at + 1} {_shown_ids(came[at:])}, expected {_shown_ids(ids[at:])}",
            _WRONG_TOKENIZER,
        )
    for question in known.questions:
        spelt = tokenizer.decode(question.answer)
        if spelt != question.text:
            raise WrongAnswersError(
                f"the tokenizer is not the one that the known answers were recorded with: it spells "
                f"{_shown_ids(question.answer)} as {spelt[:48]!r}, expected {question.text[:48]!r}",
                _WRONG_TOKENIZER,
            )


def check_answers(known: KnownAnswers, session: ModelSession, tokenizer: Tokenizer, chunk: int) -> Verified:
    """Compare the answers to all questions. The session needs a new cache afterwards.

    Raises WrongAnswersError when the model prefers another token and it is not a near-tie, PackageError when a step
    fails or gives NaN.
    """
    began = time.monotonic()
    for question in known.questions:
        came = [int(np.argmax(logits)) for logits in answer_logits(session, question.prompt, question.answer, chunk)]
        differ = [at for at in question.sure if came[at] != question.answer[at]]
        if differ:
            first = slice(differ[0], differ[0] + _SHOWN_TOKENS)
            raise WrongAnswersError(
                f"the model answers otherwise than its known answers say: {len(differ)} of {len(question.sure)} tokens "
                f"differ; expected {_shown(question.answer[first], tokenizer)}, came {_shown(came[first], tokenizer)}",
                _likely_cause(session.package, known.recorded_with.onnxruntime),
            )
    compared = sum(len(question.sure) for question in known.questions)
    return Verified(known.tokens, compared, time.monotonic() - began)


def check_runs(session: ModelSession) -> None:
    """For a package without known answers: raises PackageError when the first steps fail or give NaN.

    The session needs a new cache afterwards.
    """
    # Sums beyond float16 occur at some tokens and not at others.
    count = BUDGET if _may_overflow(session) else 4
    tokens = np.random.default_rng(0).integers(0, session.package.vocabulary, count)
    for _ in _logits(session, tokens.tolist(), count - 1):
        pass


def answer_logits(
    session: ModelSession, prompt: Sequence[int], answer: Sequence[int], chunk: int
) -> Iterator[NDArray[np.floating]]:
    """For each token of `answer` the logits that predict it, [vocabulary]. Raises PackageError."""
    return itertools.islice(_logits(session, [*prompt, *answer[:-1]], chunk), len(prompt) - 1, None)


def lead(logits: NDArray[np.floating], token: int) -> float:
    """By how much `token` leads the others, in standard deviations of `logits`, [vocabulary]; below 0: one leads it."""
    row = logits.astype(np.float32)
    spread = float(row.std())
    return float(row[token] - np.delete(row, token).max()) / spread if spread else 0.0


def with_margins_of(known: KnownAnswers, session: ModelSession, chunk: int) -> tuple[KnownAnswers | None, float]:
    """The same questions and answers with the margins that `session` gives, None where it is sure of no token.

    Also the share of the compared tokens that are first here too. The session needs a new cache afterwards. Raises
    PackageError.
    """
    questions, first = [], []
    for question in known.questions:
        logits = answer_logits(session, question.prompt, question.answer, chunk)
        leads = [lead(row, token) for row, token in zip(logits, question.answer, strict=True)]
        first += [leads[at] > 0 for at in question.sure]
        margins = [round(max(0.0, one), 3) for one in leads]
        questions.append(question.model_copy(update={"margins": margins}))
    sure = any(question.sure for question in questions)
    return known.model_copy(update={"questions": questions}) if sure else None, sum(first) / len(first)


def suspect_runtime(package: Package, version: str | None = None) -> str | None:
    """Why onnxruntime `version` (default: this one) may compute this graph wrongly, None if nothing is known.

    Up to 1.28, some tied 4-bit embeddings are computed wrongly without an error. Not all are, so a load goes on: this
    only names a likely cause, and prevents recording with such a version.
    """
    version = version or ort.__version__
    if "GatherBlockQuantized" in package.graph.operators and _release(version) < (1, 30):
        return f"onnxruntime {version} is not trusted with a tied 4-bit embedding: install 1.30 or newer"
    return None


def _logits(session: ModelSession, tokens: Sequence[int], chunk: int) -> Iterator[NDArray[np.floating]]:
    """Logits after each of `tokens`, views that the next step overwrites.

    The last token has its own step, since decoding uses other kernels than prefill.
    """
    session.use(session.make_cache(1, len(tokens)))
    done, last = 0, len(tokens) - 1
    while done <= last:
        count = 1 if session.logits_computed == "last" else min(chunk, last - done) or 1
        ids = np.array([tokens[done : done + count]], np.int64)
        try:
            logits = session.forward(0, ids, [done], done + count)[0]
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise PackageError(f"the model failed at its first steps: {one_line(error)}") from None
        if not np.isfinite(logits).all():
            raise PackageError(f"the model gives NaN or infinity where numbers are due: {_cause_of_nan(session)}")
        yield from logits
        done += count


def _may_overflow(session: ModelSession) -> bool:
    """Whether the CPU rounds every sum to float16. On Linux for aarch64 it does since onnxruntime 1.24.1 (issue 32600),
    on x86-64 too."""
    return session.package.kv_dtype == "float16" and session.device == "cpu"


def _cause_of_nan(session: ModelSession) -> str:
    if _may_overflow(session):
        return (
            "it computes in float16, which ends at 65504, or its weights are damaged; build the package for the CPU, "
            "with float32 and int4 weights, or copy it again"
        )
    return "its weights are damaged or were made for another execution provider; copy the package again"


def _likely_cause(package: Package, recorded: str) -> str:
    suspect = suspect_runtime(package)
    if suspect is not None:
        return f"{suspect} (recorded with {recorded}); else damaged weights: copy the package again"
    if ort.__version__ == recorded:
        return "damaged weights, or other ones than these answers belong to: copy the package again"
    return (
        f"damaged weights (copy the package again), or onnxruntime {ort.__version__} computes this graph wrongly (the "
        f"answers were recorded with {recorded})"
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _shown(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    return f"{_shown_ids(tokens)} {tokenizer.decode(tokens)[:48]!r}"


def _shown_ids(tokens: Sequence[int]) -> str:
    shown = " ".join(str(token) for token in tokens[:_SHOWN_TOKENS])
    return f"[{shown}{' …' if len(tokens) > _SHOWN_TOKENS else ''}]"


def _explain(error: ValidationError) -> str:
    """The first error on one line."""
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return one_line(ValueError(f"{where} {message[:1].lower()}{message[1:]}".strip()))
