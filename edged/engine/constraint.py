"""One answer under a grammar: which tokens may not come next, computed beside the step whose logits they are for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher

Denied = NDArray[np.bool_]
_ENDS = ("NoExtension", "EndOfSentence")
"""llguidance's reasons to stop where the grammar is satisfied."""


_MASKS = ThreadPoolExecutor(1, "masks")
"""Its thread starts with the first mask. llguidance releases the GIL, so that masks are computed beside a step."""


class ConstraintError(RuntimeError):
    """No token may come next, or following the grammar takes more than llguidance's limits."""

    def __init__(self, reason: str) -> None:
        """`reason`: llguidance's own; its first line is shown."""
        super().__init__(f"the grammar fails: {first_line(reason)}")


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar for one vocabulary. `silent`: tokens without text, [vocabulary]; `eos`: those that end."""

    matcher: LLMatcher
    silent: Denied
    eos: NDArray[np.int64]

    def begin(self) -> Constraint:
        """The constraint of the one answer that this grammar is for: several would share llguidance's lexer."""
        return Constraint(self)

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

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._next = self._computed()
        self.complete = False
        """Whether the tokens taken are a whole answer that cannot be longer."""

    def denied(self) -> Denied:
        """The tokens that may not come next, [vocabulary]; waits until they are known. Raises ConstraintError."""
        return self._next.result()

    def take(self, token: int) -> None:
        """Note the next token. Raises ConstraintError."""
        if not self._matcher.consume_token(token) or self._matcher.is_error():
            raise ConstraintError(self._matcher.get_error())
        if self._matcher.is_stopped():
            if self._matcher.stop_reason() not in _ENDS:
                raise ConstraintError(self._matcher.stop_reason())
            self.complete = True
        else:
            self._next = self._computed()

    def _computed(self) -> Future[Denied]:
        return _MASKS.submit(self._grammar.denied, self._matcher)


def first_line(reason: str) -> str:
    """A reason of llguidance's on one line of readable length."""
    return " ".join(reason.split("\n", 1)[0].split())[:300]
