"""One answer under a grammar: which tokens may not come next, computed beside the step whose logits they are for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher

Denied = NDArray[np.bool_]
Guess: TypeAlias = Callable[[list[int]], list[int]]
"""Gets the tokens that are likely to follow an answer, and gives those that may be the next, the likeliest first."""
_ENDS = ("NoExtension", "EndOfSentence")
"""llguidance's reasons to stop where the grammar is satisfied."""
_SHORT = 64
"""Bytes of a forced text that has no token of its own, at most."""

_MASKS = ThreadPoolExecutor(1, "masks")
"""Its thread starts with the first mask. llguidance releases the GIL, so that masks are computed beside a step."""


class ConstraintError(RuntimeError):
    """No token may come next, or following the grammar takes more than llguidance's limits."""

    def __init__(self, reason: str) -> None:
        """`reason`: llguidance's own; its first line is shown."""
        super().__init__(f"the grammar fails: {first_line(reason)}")


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar for one vocabulary. `silent`: tokens without text, [vocabulary]; `eos`: those that end.

    `forces`: the texts that it leaves no choice of are short enough to be found between two steps.
    """

    matcher: LLMatcher
    silent: Denied
    eos: NDArray[np.int64]
    forces: bool = True

    def begin(self, forcing: bool = False) -> Constraint:
        """The constraint of the one answer that this grammar is for: several would share llguidance's lexer.

        `forcing`: as for Constraint.
        """
        return Constraint(self, forcing and self.forces)

    def denied(self, matcher: LLMatcher) -> Denied:
        """The tokens that may not come next, [vocabulary]. Raises ConstraintError."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():  # then the bits are those of an end
            raise ConstraintError(matcher.get_error())
        denied = np.unpackbits(bits, count=len(self.silent), bitorder="little").view(np.bool_)
        np.logical_not(denied, out=denied)
        denied |= self.silent
        denied[self.eos] = not matcher.is_accepting()
        if denied.all():
            raise ConstraintError("no token can follow")
        return denied


class Constraint:
    """The state of one answer. For one thread, the engine's."""

    def __init__(self, grammar: Grammar, forcing: bool) -> None:
        """`forcing`: where the grammar leaves one text only, its tokens are those that the tokenizer writes.

        A last token that could be part of a longer one with what follows is not forced, as llguidance finds out.
        """
        self._grammar = grammar
        self._forcing = forcing
        self._matcher = grammar.matcher.deep_copy()
        self._taken: list[int] = []
        self._forced: list[int] = []
        """Tokens that come next for certain. They are found where the ones before have run out, so that they depend on
        the answer and not on the steps that it takes."""
        self._drafts: tuple[int, ...] = ()
        self._place = 0
        """How many of `_drafts` were taken."""
        self._masks: Future[list[Denied | ConstraintError]] | None = None
        """Those before each of the drafts, and the one after them."""
        self.complete = False
        """Whether the tokens taken are a whole answer that cannot be longer."""
        self._force()

    @property
    def forced(self) -> int | None:
        """The token that comes next whatever the model says, None where the model chooses."""
        return self._forced[0] if self._forced else None

    def draft(self, most: int, guess: Guess) -> list[int]:
        """Up to `most` tokens that may follow: forced ones, and between them those guessed that the grammar allows."""
        self._settle()
        drafts = self._forced[:most]
        if drafts and not self._matcher.consume_tokens(drafts):
            most = 0
        while len(drafts) < most:
            fit = (token for token in guess(drafts) if self._fits(token))
            if (token := next(fit, None)) is None:
                break
            drafts.append(token)
            forced = self._forced_text()[1][: most - len(drafts)]
            if forced and not self._matcher.consume_tokens(forced):
                break
            drafts += forced
        self._go_back(len(drafts))
        return drafts

    def _fits(self, token: int) -> bool:
        """Whether the grammar allows a token that is not the answer's end; then it is taken."""
        return not self._grammar.silent[token] and self._matcher.try_consume_tokens([token]) == 1

    def look_ahead(self, drafts: tuple[int, ...] = ()) -> None:
        """Begin to compute the masks after each of `drafts`, which draft() gave: beside the step that computes them."""
        if self._masks is None or self._drafts != drafts:
            self._settle()
            self._drafts, self._place = drafts, 0
            self._masks = _MASKS.submit(self._computed, drafts)

    def denied(self) -> Denied:
        """The tokens that may not come next, [vocabulary]; waits until they are known. Raises ConstraintError."""
        if self._masks is None:
            self.look_ahead()
        assert self._masks is not None
        mask = self._masks.result()[self._place]
        if isinstance(mask, ConstraintError):
            raise mask
        return mask

    def take(self, token: int) -> None:
        """Note the next token. Raises ConstraintError."""
        self._settle()
        if not self._matcher.consume_token(token) or self._matcher.is_error():
            raise ConstraintError(self._matcher.get_error())
        self._taken.append(token)
        del self._forced[:1]
        self._place += 1
        if token not in self._drafts[self._place - 1 : self._place]:
            self._masks = None
        if self._matcher.is_stopped():
            if self._matcher.stop_reason() not in _ENDS:
                raise ConstraintError(self._matcher.stop_reason())
            self.complete = True
        elif not self._forced:
            self._force()

    def _settle(self) -> None:
        """Wait until the matcher is in no other thread's use."""
        if self._masks is not None:
            self._masks.result()

    def _force(self) -> None:
        """Find out what follows the tokens taken for certain."""
        text, self._forced = self._forced_text()
        if self._forced:
            sound = self._matcher.consume_token(self._forced[0]) and self._matcher.rollback(1)
        else:
            sound = len(text) <= _SHORT
        if not sound:  # the text goes on beyond llguidance's limits, as the next call would tell
            self._renew()

    def _forced_text(self) -> tuple[bytes, list[int]]:
        """The only text that can follow, and its tokens up to where another text may be part of a token."""
        text = self._matcher.compute_ff_bytes() if self._forcing else b""
        return text, self._matcher.compute_ff_tokens() if text else []

    def _computed(self, drafts: tuple[int, ...]) -> list[Denied | ConstraintError]:
        """The masks before each of `drafts` and after them. The first that cannot be had is the last."""
        masks: list[Denied | ConstraintError] = []
        taken = 0
        try:
            for token in drafts:
                masks.append(self._grammar.denied(self._matcher))
                if not self._matcher.consume_token(token):
                    raise ConstraintError(self._matcher.get_error())
                taken += 1
            if not self._matcher.is_stopped():
                masks.append(self._grammar.denied(self._matcher))
        except ConstraintError as error:
            masks.append(error)
        self._go_back(taken)
        return masks

    def _go_back(self, tokens: int) -> None:
        """Forget the newest tokens, which were taken for looking ahead only."""
        if self._matcher.is_error() or not self._matcher.rollback(tokens):  # a guess took more than the limits
            self._renew()

    def _renew(self) -> None:
        """Replace the matcher, which is lost once it has an error."""
        self._matcher = self._grammar.matcher.deep_copy()
        self._matcher.consume_tokens(self._taken)


def first_line(reason: str) -> str:
    """A reason of llguidance's on one line of readable length."""
    return " ".join(reason.split("\n", 1)[0].split())[:300]
