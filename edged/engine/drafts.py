"""Guesses the next tokens of an answer from what its prompt and itself repeat (prompt lookup decoding, Saxena 2023).

The last tokens are looked up in all tokens before them, and what followed there is the draft. Pure.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edged.engine.constraint import Constraint

MOST_TOKENS = 16
"""Tokens of a step with a draft, at most: where products of matrices limit the speed and not the memory, 16 tokens take
twice the time of 8."""
_FIRST = 4
"""Length of the first draft in tokens."""
_SIZES = (3, 2)
"""Tokens that are looked up; the longer match is tried first."""
_LONGEST_PAUSE = 16
"""Steps without a draft after drafts of which nothing was taken."""


class Drafts(Protocol):
    """Proposes drafts for one answer, and hears what became of them."""

    def propose(self, tokens: list[int], most: int, constraint: Constraint | None) -> list[int]:
        """Up to `most` tokens that may follow `tokens`, which is the prompt and the answer so far. Called each step.

        `constraint`: of the answer, where it has a grammar.
        """

    def note(self, drafted: int, taken: int) -> None:
        """Hear that of `drafted` guesses so many were right; what a grammar forces is no guess."""


class DraftLength:
    """How many tokens to guess.

    Twice as many after all were right, half as many and none for some steps after none was.
    """

    def __init__(self) -> None:
        self._length = _FIRST
        self._misses = 0
        """Drafts in a row of which nothing was taken."""
        self._pause = 0

    def next(self) -> int:
        """Most tokens to guess in this step."""
        if self._pause:
            self._pause -= 1
            return 0
        return self._length

    def note(self, drafted: int, taken: int) -> None:
        """As for Drafts."""
        if taken == drafted:
            self._length = min(2 * self._length, MOST_TOKENS - 1)
        if taken:
            self._misses = 0
            return
        self._length = max(self._length // 2, 1)
        self._misses += 1
        self._pause = min(2**self._misses, _LONGEST_PAUSE)


class NGramDrafts:
    """Drafts by lookup."""

    def __init__(self) -> None:
        self._tokens = np.empty(0, np.int64)
        self._count = 0
        """Tokens that `_tokens` holds; the rest is room for more."""
        self._length = DraftLength()

    def propose(self, tokens: list[int], most: int, constraint: Constraint | None = None) -> list[int]:
        """As Drafts."""
        most = min(most, self._length.next())
        if not most:
            return []
        self._follow(tokens)
        known = self._tokens[: self._count]
        for size in _SIZES:
            starts = len(known) - size  # of n-grams before the last one
            if starts < 1:
                continue
            same = known[:starts] == known[-size]
            for place in range(1, size):
                same &= known[place : starts + place] == known[place - size]
            found = same.nonzero()[0]
            if len(found):
                after = int(found[-1]) + size
                # What reaches the newest token goes on as it began: a repetition may repeat once more.
                places = after + np.arange(most) % (len(known) - after)
                return [int(token) for token in known[places]]
        return []

    def note(self, drafted: int, taken: int) -> None:
        """As Drafts."""
        self._length.note(drafted, taken)

    def _follow(self, tokens: list[int]) -> None:
        if len(tokens) > len(self._tokens):
            room = np.empty(2 * len(tokens), np.int64)
            room[: self._count] = self._tokens[: self._count]
            self._tokens = room
        self._tokens[self._count : len(tokens)] = tokens[self._count :]
        self._count = len(tokens)
