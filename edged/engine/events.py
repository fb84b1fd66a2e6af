"""Events of the engine: the model's state, and what becomes of each request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edged.engine.loaded_model import LoadedModel
from edged.engine.logprobs import PlaceLogprobs
from edged.engine.sequence import Sequence
from edged.engine.tool_format import Call
from edged.faults import Fault


@dataclass(frozen=True)
class ModelChanged:
    """The model is loading, serving, or unavailable for `reason`."""

    state: Literal["loading", "serving", "unavailable"]
    reason: str = ""
    loaded: LoadedModel | None = None
    fault: Fault | None = None
    """What is wrong with the package, where that has a code of its own."""
    corrupt_blocks: int = 0
    """Blocks of the package that are not as its manifest says."""


@dataclass(frozen=True)
class Started:
    """The request has a row."""

    key: int


@dataclass(frozen=True)
class Piece:
    """New text of a request that streams."""

    key: int
    text: str


@dataclass(frozen=True)
class Finished:
    """An answer. `tokens` holds all tokens made, including an ending eos; `token_times` when each was made.

    Times are CLOCK_MONOTONIC seconds.
    """

    key: int
    text: str
    tokens: tuple[int, ...]
    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    started: float
    token_times: tuple[float, ...]
    ended: float
    probabilities: tuple[float, ...] | None = None
    """Of the labels, where the request had some."""
    logprobs: tuple[PlaceLogprobs, ...] | None = None
    """Of each token but an ending one, where the request asked for them."""
    scores: tuple[float, ...] | None = None
    """Of the documents that were ranked, in their order; `prompt_tokens` are those of all of them."""
    calls: tuple[Call, ...] = ()
    """Calls of tools; `text` is what the answer says before them."""
    speculated: int | None = None
    """Tokens that were guessed in a draft; None: no drafts were tried."""
    forced: int | None = None
    """Tokens that were in a draft because the grammar forced them; None: no drafts were tried, or without a grammar."""

    @classmethod
    def of(cls, row: Sequence) -> Finished:
        """The answer of a row that has just ended."""
        assert row.finish_reason is not None
        return cls(
            key=row.request.key,
            text=row.all_text,
            tokens=tuple(row.generated),
            reason=row.finish_reason,
            prompt_tokens=len(row.request.prompt) + (0 if row.ranks is None else row.ranks.ranking.tokens),
            cached_tokens=row.reused,
            started=row.started,
            token_times=tuple(row.token_times),
            ended=time.monotonic(),
            probabilities=None if row.scores is None else row.scores.probabilities,
            logprobs=None if row.logprobs is None else tuple(row.logprobs.places),
            scores=None if row.ranks is None else tuple(row.ranks.scores),
            calls=() if row.calls is None else row.calls.calls,
            speculated=None if row.drafts is None else row.speculated,
            forced=None if row.drafts is None or row.constraint is None else row.forced,
        )

    @property
    def first_token(self) -> float:
        """When the first token was made."""
        return self.token_times[0]


@dataclass(frozen=True)
class Ended:
    """A request that left the engine without an answer.

    With `failure` it failed. Without, it was cancelled, or it was prepared for another model than the one that serves
    now: then the caller prepares it again.
    """

    key: int
    failure: str | None = None
    tokens: int = 0


EngineEvent: TypeAlias = ModelChanged | Started | Piece | Finished | Ended
