"""Drafts for an answer under a grammar: what the grammar forces, and guesses of the text between.

Most structured answers copy their values from the prompt, and have the same punctuation around each of them.
"""

from __future__ import annotations

from collections.abc import Callable

from edged.engine.constraint import Constraint
from edged.engine.drafts import DraftLength, Drafts, NGramDrafts
from edged.engine.sequence import Request

_PUNCTUATION = frozenset(b'"{}[]:, \t\r\n')
"""Of JSON, with its white space."""
_SIZES = (3, 2)
"""Tokens that are looked up in prompt and answer; the longer match is tried first."""


def drafts_for(token_bytes: Callable[[int], bytes], request: Request) -> Drafts:
    """What proposes drafts of a request's answer. `token_bytes` gives the text of a token."""
    return NGramDrafts() if request.grammar is None else StructuredDrafts(token_bytes, len(request.prompt))


class StructuredDrafts:
    """Drafts of single guesses, each looked up after the one before, and forced tokens wherever these follow."""

    def __init__(self, token_bytes: Callable[[int], bytes], given: int) -> None:
        """`token_bytes` gives the text of a token. `given`: tokens of the prompt."""
        self._bytes = token_bytes
        self._given = given
        self._count = 0
        """Tokens that are in the tables below."""
        self._after: dict[tuple[int, ...], int] = {}
        """What followed some tokens of prompt or answer last."""
        self._only: dict[int, int | None] = {}
        """What follows a token of the prompt, None where not always the same does."""
        self._pairs: dict[tuple[int, ...], int] = {}
        """What followed two tokens of the answer last."""
        self._punctuation: dict[int, dict[int, None]] = {}
        """The punctuation that followed some punctuation of the answer, the latest last."""
        self._known: dict[int, bool] = {}
        self._length = DraftLength()

    def propose(self, tokens: list[int], most: int, constraint: Constraint | None) -> list[int]:
        """As Drafts."""
        assert constraint is not None
        self._follow(tokens)
        guesses = self._length.next()

        def guess(more: list[int]) -> list[int]:
            nonlocal guesses
            guesses -= 1
            return self._guesses([*tokens[-max(_SIZES) :], *more]) if guesses >= 0 else []

        return constraint.draft(most, guess)

    def note(self, drafted: int, taken: int) -> None:
        """As Drafts."""
        self._length.note(drafted, taken)

    def _guesses(self, last: list[int]) -> list[int]:
        """Tokens that may follow these, the likeliest first."""
        after_punctuation = self._is_punctuation(last[-1])
        guesses = []
        for size in _SIZES:
            if (found := self._after.get(tuple(last[-size:]))) is not None:
                # A value seldom begins as another one did.
                guesses = [found] if not after_punctuation or self._is_punctuation(found) else []
                break
        if after_punctuation:
            found = self._pairs.get(tuple(last[-2:]))
            if found is None or self._is_punctuation(found):
                guesses += reversed(self._punctuation.get(last[-1], {}))
        elif not guesses and len(last) > 1 and self._is_punctuation(last[-2]):
            found = self._only.get(last[-1])
            guesses = [] if found is None else [found]
        return guesses

    def _follow(self, tokens: list[int]) -> None:
        for at in range(max(1, self._count), len(tokens)):
            before, token = tokens[at - 1], tokens[at]
            for size in _SIZES:
                if at >= size:
                    self._after[tuple(tokens[at - size : at])] = token
            if at < self._given:
                self._only[before] = token if self._only.get(before, token) == token else None
            if at > self._given:
                self._pairs[tokens[at - 2], before] = token
                if self._is_punctuation(before) and self._is_punctuation(token):
                    followed = self._punctuation.setdefault(before, {})
                    followed.pop(token, None)
                    followed[token] = None
        self._count = len(tokens)

    def _is_punctuation(self, token: int) -> bool:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = _PUNCTUATION.issuperset(self._bytes(token))
        return known
