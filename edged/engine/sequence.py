"""One request in the engine: its tokens, how many of them are computed, and the tokens and text made so far."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edged.engine.constraint import Constraint, Grammar
from edged.engine.detokenizer import TextStream
from edged.engine.drafts import Drafts
from edged.engine.labels import Labels, Path, Scores
from edged.engine.logprobs import Logprobs
from edged.engine.ranking import Ranking, Ranks
from edged.engine.sampler import Sampler, Sampling
from edged.engine.tool_format import CallText, ToolFormat

PRIORITY_SECONDS = 300.0
"""A job goes before those of the next priority that came up to this much earlier. So urgent jobs go first, and none
waits for ever."""


@dataclass(frozen=True)
class Request:
    """What the engine needs of a job. `key` is the caller's; `received` is CLOCK_MONOTONIC seconds."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    priority: int = 5
    received: float = 0.0
    stream: bool = False
    ignore_eos: bool = False
    continued: bool = False
    """The answer continues the prompt's text, so that a space between them is kept."""
    store: bool = True
    """False: nothing of the prompt may be written to disk."""
    pin: bool = False
    """Write the prompt's prefix to disk at once and keep it there."""
    grammar: Grammar | None = None
    """What the answer must be. It belongs to this request alone."""
    labels: Labels | None = None
    """What the answer must be one of: their probabilities are computed, and no token is sampled."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told with each token's probability; None: no probabilities are."""
    ranking: Ranking | None = None
    """What is ranked in place of an answer. `max_tokens` is the size of the longest document."""
    tools: ToolFormat | None = None
    """The answer may call tools, in this format."""
    signature: str | None = None
    """LoadedModel.signature of the model that the prompt was prepared for. Another model does not run it; None: any."""
    alone: bool = False
    """It shares no step, and no drafts are tried: the time of its steps is measured."""

    @property
    def makes_text(self) -> bool:
        """Whether its answer is made token by token: neither a choice nor a ranking."""
        return self.labels is None and self.ranking is None

    @property
    def rank(self) -> float:
        """Lower runs first."""
        return rank(self.priority, self.received)


def rank(priority: int, received: float) -> float:
    """Position in the queue of a job with this priority, received at this second: lower goes first."""
    return received - priority * PRIORITY_SECONDS


@dataclass(eq=False)
class Sequence:
    """A request that has a row. In each step its computed tokens move towards its known ones, until all are computed.

    A computed token has its keys and values in the KV cache.
    """

    request: Request
    text: TextStream
    eos: frozenset[int] = frozenset()
    ragged: bool = True
    """False: it never shares a step, since the graph computes unequal rows wrongly."""
    signature: str | None = None
    """LoadedModel.signature of the model that made its tokens."""
    tokens: list[int] = field(default_factory=list)
    """All known tokens, the prompt's first."""
    computed: int = 0
    long_rope: bool = False
    """Which rope table the computed tokens were computed with."""
    started: float = 0.0
    token_times: list[float] = field(default_factory=list)
    """When each token was made, CLOCK_MONOTONIC seconds."""
    last_step: int = 0
    """Number of the last step that this row took part in."""
    alone: bool = False
    """A step that it shared failed, and it runs by itself until it is known not to be the cause; or it always does."""
    finish_reason: Literal["stop", "length"] | None = None
    """None while more tokens are to be made."""
    reused: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    keys: tuple[bool, list[bytes]] | None = None
    """Keys of the prompt's blocks, and for which rope table."""
    disk_asked: bool = False
    reading: bool = False
    """Its prefix is being read from disk: nothing to compute yet."""
    unheld: list[int] = field(default_factory=list)
    """Its blocks that came from disk and are not in the cache in RAM yet, by number."""
    logprobs: Logprobs | None = None
    drafts: Drafts | None = None
    """Proposes tokens of its answer; None: none are tried."""
    speculated: int = 0
    """Tokens of the answer that were guessed in a draft."""
    forced: int = 0
    """Those that were in a draft because its grammar forced them."""
    sampler: Sampler = field(init=False)
    constraint: Constraint | None = field(init=False)
    scores: Scores | None = field(init=False)
    calls: CallText | None = field(init=False)
    ranks: Ranks | None = field(init=False)
    _pieces: list[str] = field(default_factory=list)
    _taken: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for sampling that cannot be used."""
        self.sampler = Sampler(self.request.sampling, self.request.prompt)
        self.alone = self.request.alone
        self.constraint = None if self.request.grammar is None else self.request.grammar.begin(self.drafts is not None)
        self.scores = None if self.request.labels is None else Scores(self.request.labels)
        self.calls = None if self.request.tools is None else CallText(self.request.tools)
        self.ranks = None if self.request.ranking is None else Ranks(self.request.ranking)
        self.tokens = self.tokens or [*self.request.prompt, *(() if self.ranks is None else self.ranks.due)]

    @property
    def pending(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.computed

    @property
    def behind(self) -> bool:
        """Whether more than the newest token is pending. Several tokens at once are computed right in one row only."""
        return self.pending > 1

    @property
    def batch_key(self) -> bool | None:
        """Rows with equal keys may share a step of one token each; None: it shares none."""
        return None if self.behind or self.alone or not self.ragged else self.long_rope

    @property
    def given(self) -> int:
        """How many of the known tokens are given to the model, not made by it."""
        return len(self.request.prompt) if self.ranks is None else len(self.tokens)

    @property
    def made(self) -> int:
        """How many tokens the model made."""
        return len(self.tokens) - self.given

    @property
    def generated(self) -> list[int]:
        """The tokens that the model made."""
        return self.tokens[self.given :]

    @property
    def all_text(self) -> str:
        """The text made so far."""
        return "".join(self._pieces)

    def take_text(self) -> str:
        """The text made since the last call."""
        new = "".join(self._pieces[self._taken :])
        self._taken = len(self._pieces)
        return new

    def settle_rope(self, switch: int | None) -> None:
        """Compute all tokens anew once they cross the LongRoPE switch: keys of the other table are of no use."""
        if switch is not None and self.long_rope != (len(self.tokens) > switch):
            self.long_rope = not self.long_rope
            self.forget_computed()

    def forget_computed(self) -> None:
        """Drop what the KV cache holds."""
        self.computed, self.reading = 0, False
        self.unheld.clear()

    def advance(self, logits: NDArray[np.floating]) -> list[int]:
        """Choose the next token by `logits`, [vocabulary], those after the last computed token; they may be changed.

        Returns the tokens made: none while known tokens are still pending. Raises NotFiniteError, ConstraintError.
        """
        self.alone = self.request.alone
        if self.pending:
            return []
        if self.scores is not None:
            return self._advance_scores(self.scores, logits)
        if self.ranks is not None:
            self._advance_ranks(self.ranks, logits)
            return []
        constraint = self.constraint
        own = None if self.logprobs is None else logits.astype(np.float64)
        token = self._choose(logits)
        self.token_times.append(time.monotonic())
        self.tokens.append(token)
        if constraint is not None:
            constraint.take(token)
        stop = token in self.request.stop_tokens or (token in self.eos and not self.request.ignore_eos)
        if own is not None and self.logprobs is not None and not stop:
            self.logprobs.note(own, token)
        complete = constraint is not None and constraint.complete
        full = self.made >= self.request.max_tokens
        piece = "" if stop else self.text.push(token)
        if stop or (full and constraint is None):  # a grammar has no broken characters: what is cut off is left out
            piece += self.text.finish()
        if stop or complete or self.text.stopped:
            self.finish_reason = "stop"
        elif full:
            self.finish_reason = "length"
        if self.calls is not None:
            piece = self.calls.push(piece) + (self.calls.finish() if self.finish_reason else "")
        if piece:
            self._pieces.append(piece)
        return [token]

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow the newest one: what the grammar forces, and guesses."""
        return () if self.drafts is None or most < 1 else tuple(self.drafts.propose(self.tokens, most, self.constraint))

    def forced_run(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that the grammar forces after the newest one, where drafts may be tried."""
        if self.drafts is None or self.constraint is None or self.constraint.forced is None or most < 1:
            return ()
        return tuple(self.constraint.draft(most, lambda _: []))

    def look_ahead(self, drafts: tuple[int, ...]) -> None:
        """A step begins that computes the newest token and `drafts`: what is computed beside it begins too."""
        if self.constraint is not None:
            self.constraint.look_ahead(drafts)

    def verify(self, logits: NDArray[np.floating], drafts: tuple[int, ...]) -> list[int]:
        """Choose tokens after a step that computed the last known token and, behind it, `drafts`.

        `logits`: [1 + drafts, vocabulary]. Each token is chosen as `advance` does, with the same draws, as long as the
        draft before it was right: so the tokens are those that single steps would give. What the step computed of wrong
        drafts is forgotten. Returns the tokens made. Raises as `advance`.
        """
        forced = self._is_forced
        made = self.advance(logits[0])
        for draft, following in zip(drafts, logits[1:], strict=True):
            if self.tokens[-1] != draft:
                break
            self.forced += forced
            self.speculated += not forced
            if self.finish_reason is not None:
                break
            self.computed += 1
            forced = self._is_forced
            made += self.advance(following)
        return made

    def note_branches(self, labels: tuple[Path, ...], logits: NDArray[np.floating]) -> None:
        """Take the logits after labels that were computed beside the row, [labels, vocabulary]: before advance().

        Raises NotFiniteError.
        """
        for label, after in zip(labels, logits, strict=True):
            assert self.scores is not None
            self.scores.note_of(label, after)

    @property
    def _is_forced(self) -> bool:
        """Whether the grammar leaves no choice of the next token."""
        return self.constraint is not None and self.constraint.forced is not None

    def _choose(self, logits: NDArray[np.floating]) -> int:
        """The next token: the one that the grammar forces, or one that the sampler draws."""
        if self.constraint is None:
            return self.sampler.sample(logits)
        forced = self.constraint.forced
        if forced is None:
            return self.sampler.sample(logits, self.constraint.denied())
        self.sampler.note(forced)
        return forced

    def _advance_scores(self, scores: Scores, logits: NDArray[np.floating]) -> list[int]:
        """Go to the next beginning of a label, over what was computed of another; after the last one, choose."""
        start = len(self.request.prompt)
        following = scores.note(logits)
        if following is not None:
            self.tokens[start:] = following
            self.computed = len(self.tokens) - 1
            return []
        chosen = scores.choose(self.request.sampling.temperature, self.sampler.uniform())
        tokens = scores.labels.tokens[chosen]
        self.tokens[start:], self.computed = tokens, start
        self.token_times += [time.monotonic()] * len(tokens)
        self._pieces.append(scores.labels.texts[chosen])
        self.finish_reason = "stop"
        return list(tokens)

    def _advance_ranks(self, ranks: Ranks, logits: NDArray[np.floating]) -> None:
        """Go to the next document, over what was computed of the last one."""
        if ranks.note(logits):
            self.token_times.append(time.monotonic())
            self.finish_reason = "stop"
            return
        self.tokens[len(self.request.prompt) :] = ranks.due
        self.computed = min(self.computed, ranks.ranking.shared)
