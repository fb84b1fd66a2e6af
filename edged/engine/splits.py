"""Where prompts may be split so that their logits keep the same bits. Pure: split_probe.py finds the rule."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

LEAST_CHUNK = 2
"""Tokens of a chunk. Attention runs other code for a single token, with other last bits, so a prompt is never read
token by token."""


@dataclass(frozen=True)
class SplitRule:
    """Which chunks give a prompt the bits that it has in one piece."""

    grain: int = 1
    """Every chunk but a prompt's last ends at a multiple of this many tokens."""
    lone: int = 0
    """No chunk has one token more than a multiple of this many: attention takes queries in blocks of so many, and
    computes one that is alone in its block otherwise. 0: there is no such limit."""
    holds: bool = True
    """False: no rule was found under which the bits are the same."""

    @property
    def least(self) -> int:
        """Tokens that a chunk has at least, unless the prompt ends; one token more where one would be left."""
        return max(self.grain, LEAST_CHUNK)

    def chunk(self, computed: int, pending: int, most: int) -> int:
        """Tokens of the next chunk of a row with `computed` tokens in the cache and two or more `pending`.

        At most `most`, unless the rule has no chunk that short: then the shortest that it has.
        """
        most = min(pending, max(most, LEAST_CHUNK))
        for count in chain(range(most, LEAST_CHUNK - 1, -1), range(most + 1, pending)):
            if self._allows(computed, pending, count):
                return count
        return pending

    def _allows(self, computed: int, pending: int, count: int) -> bool:
        left = pending - count
        ends_well = left == 0 or (left >= LEAST_CHUNK and (computed + count) % self.grain == 0)
        lone_token = self.lone > 0 and count % self.lone == 1
        return ends_well and not lone_token

    def multiple(self, tokens: int) -> int:
        """The smallest multiple of `grain` from `tokens` on."""
        return -(-tokens // self.grain) * self.grain
