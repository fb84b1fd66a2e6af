"""The prefix cache: keys and values of leading tokens that jobs share, found by content, kept under a byte budget.

Prompts are cut into blocks of BLOCK_TOKENS tokens. A block's key is the hash of its tokens and of the key of the block
before it, so equal keys mean equal leading tokens, and a longer prefix shares the blocks of a shorter one (the idea is
vLLM's automatic prefix caching). Pure but for the memory it holds: it knows neither rows nor sessions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 32
"""Tokens of a block. Smaller ones share more and cost more lookups; whole blocks only are kept."""


def block_keys(tokens: Sequence[int], long_rope: bool) -> Iterator[bytes]:
    """The keys of the whole blocks of `tokens`. Keys turned by the two rope tables of LongRoPE are different things."""
    key = b"long" if long_rope else b"short"
    ids = np.asarray(tokens[: len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS], np.int64)
    for start in range(0, len(ids), BLOCK_TOKENS):
        key = hashlib.sha256(key + ids[start : start + BLOCK_TOKENS].tobytes()).digest()
        yield key


class PrefixCache:
    """Blocks of keys and values in memory, the least recently used out first."""

    def __init__(self, budget: int) -> None:
        """`budget`: the most bytes held; 0 keeps nothing."""
        self.budget = budget
        self.bytes = 0
        self._blocks: OrderedDict[bytes, NDArray[np.generic]] = OrderedDict()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def match(self, tokens: Sequence[int], long_rope: bool = False) -> list[NDArray[np.generic]]:
        """The blocks of the longest prefix of `tokens` that is held, in order; they count as just used.

        At least one token of `tokens` is left over: a model must see one to say what follows.
        """
        found: list[bytes] = []
        for key in block_keys(tokens[:-1], long_rope):
            if key not in self._blocks:
                break
            found.append(key)
        for key in reversed(found):  # the beginning is shared by most: it goes last
            self._blocks.move_to_end(key)
        return [self._blocks[key] for key in found]

    def missing(self, tokens: Sequence[int], long_rope: bool = False) -> list[tuple[bytes, int]]:
        """Keys and first tokens of the whole blocks of `tokens` that are not held and would fit the budget."""
        return [
            (key, number * BLOCK_TOKENS)
            for number, key in enumerate(block_keys(tokens, long_rope))
            if key not in self._blocks
        ]

    def add(self, key: bytes, block: NDArray[np.generic]) -> None:
        """Hold one block; the least recently used go until it fits. One larger than the budget is not held."""
        if block.nbytes > self.budget or key in self._blocks:
            return
        while self.bytes + block.nbytes > self.budget:
            _, old = self._blocks.popitem(last=False)
            self.bytes -= old.nbytes
        self._blocks[key] = block
        self.bytes += block.nbytes
