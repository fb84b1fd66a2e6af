"""The prefix cache: keys and values of leading tokens that jobs share, found by content, kept under a byte budget.

Prompts are cut into blocks of equally many tokens. A block's key is the hash of its tokens and of the key of the block
before it, so equal keys mean equal leading tokens, and a longer prefix shares the blocks of a shorter one (the idea is
vLLM's automatic prefix caching). Only what a prefill computed is kept: a token that was decoded has other last bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.engine.splits import LEAST_CHUNK

BLOCK_TOKENS = 32
"""Tokens of a block, unless prompts may only be split at multiples of more (SplitRule). Smaller blocks share more and
cost more lookups; whole blocks only are kept."""
HITS_TO_WRITE = 2
"""How often a block must have been found before it is worth a write to disk."""

Blocks = list[NDArray[np.generic]]


def block_keys(tokens: Sequence[int], long_rope: bool, identity: bytes, block: int = BLOCK_TOKENS) -> list[bytes]:
    """The keys of the whole blocks of `tokens`, 32 bytes each. `block`: tokens of each.

    `identity` stands for the model and the layout. Keys turned by the two rope tables of LongRoPE are different things.
    """
    key = identity + (b"long" if long_rope else b"short")
    ids = np.asarray(tokens[: len(tokens) // block * block], np.int64)
    keys = []
    for start in range(0, len(ids), block):
        key = hashlib.sha256(key + ids[start : start + block].tobytes()).digest()
        keys.append(key)
    return keys


def usable_blocks(tokens: int, block: int = BLOCK_TOKENS) -> int:
    """How many blocks of a prompt of `tokens` can be taken over: enough must be left for a prefill step."""
    return max(0, (tokens - LEAST_CHUNK) // block)


@dataclass
class _Held:
    block: NDArray[np.generic]
    depth: int
    """Which block of its prompt it is, from 0."""
    store: bool
    """Whether it may come to lie on disk."""
    pinned: bool
    hits: int = 0


class PrefixCache:
    """Blocks of keys and values in memory, the least recently used out first. The engine's thread owns it."""

    def __init__(self, budget: int) -> None:
        """`budget`: the most bytes held; 0 keeps nothing."""
        self.budget = budget
        self.bytes = 0
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def match(self, keys: Sequence[bytes], store: bool = True, pin: bool = False) -> Blocks:
        """The blocks of the longest run of `keys`, from the first, that is held; they count as just used.

        `store` and `pin` are what the job says for whom they are: a block that anyone lets lie on disk may.
        """
        found: Blocks = []
        for key in keys:
            held = self._held.get(key)
            if held is None:
                break
            held.hits += 1
            held.store |= store
            held.pinned |= pin
            found.append(held.block)
        self.touch(keys[: len(found)])
        return found

    def add(self, key: bytes, block: NDArray[np.generic], depth: int, store: bool = True, pin: bool = False) -> None:
        """Hold one block, which nobody may change; the least recently used go until it fits.

        One larger than the budget is not held.
        """
        held = self._held.get(key)
        if held is not None:
            held.store |= store
            held.pinned |= pin
            return
        if block.nbytes > self.budget:
            return
        while self.bytes + block.nbytes > self.budget:
            _, old = self._held.popitem(last=False)
            self.bytes -= old.block.nbytes
        self._held[key] = _Held(block, depth, store, pin)
        self.bytes += block.nbytes

    def forget(self, keys: Iterable[bytes] | None) -> None:
        """Drop blocks, all of them where `keys` is None. Rows that took them over keep what they have."""
        for key in list(self._held) if keys is None else keys:
            held = self._held.pop(key, None)
            if held is not None:
                self.bytes -= held.block.nbytes

    def has_room(self, depth: int, block_bytes: int) -> bool:
        """Whether a prompt's block number `depth` fits beside those before it, without which it is not found."""
        return (depth + 1) * block_bytes <= self.budget

    def touch(self, keys: Sequence[bytes]) -> None:
        """Count a prompt's blocks as just used. The beginning is shared by most: it goes last."""
        for key in reversed(keys):
            if key in self._held:
                self._held.move_to_end(key)

    def next_to_write(self, on_disk: Mapping[bytes, bool]) -> tuple[bytes, NDArray[np.generic], bool] | None:
        """A block that is worth a write and not in `on_disk`, with its key and whether it is pinned.

        `on_disk`: keys, and whether each is pinned there. One that came to be pinned later is due again.
        Pinned ones first, and of those the beginnings of prompts, without which the rest is not found.
        """
        worth = [
            (not held.pinned, held.depth, key)
            for key, held in self._held.items()
            if held.store
            and (held.pinned or held.hits >= HITS_TO_WRITE)
            and (key not in on_disk or held.pinned > on_disk[key])
        ]
        if not worth:
            return None
        *_, key = min(worth)
        return key, self._held[key].block, self._held[key].pinned
