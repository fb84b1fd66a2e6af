"""Decides what the next step computes. Pure: it looks at rows and returns a step, it runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edged.engine.sampler import Sampling
from edged.engine.tokenizer import TextStream


@dataclass(frozen=True)
class Request:
    """What the engine needs of a job. `key` is the caller's; higher `priority` runs first."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    stop: tuple[str, ...] = ()
    priority: int = 5
    stream: bool = False
    ignore_eos: bool = False


@dataclass(eq=False)
class Row:
    """One sequence in flight: its tokens, and how many of them have keys and values in the cache."""

    request: Request
    text: TextStream
    generator: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    long_rope: bool = False
    """Which rope table the cached tokens were computed with."""
    pieces: list[str] = field(default_factory=list)
    started: float = 0.0
    first_token: float = 0.0
    last_step: int = 0
    """Number of the step that last moved this row on."""

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet; 1 while decoding."""
        return len(self.tokens) - self.cached

    @property
    def made(self) -> int:
        """How many tokens the model made."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def generated(self) -> list[int]:
        """The tokens that the model made."""
        return self.tokens[len(self.request.prompt) :]


@dataclass(frozen=True)
class Step:
    """`count` tokens for each of the neighbouring rows first … first+rows-1, with a mask of `width` columns."""

    first: int
    rows: int
    count: int
    width: int
    prefill: bool


def settle_rope(row: Row, switch: int | None) -> None:
    """Forget a row's cache when it has crossed the LongRoPE switch: its keys were turned by the other table."""
    if switch is not None and row.long_rope != (len(row.tokens) > switch):
        row.long_rope, row.cached = not row.long_rope, 0


def schedule(
    rows: Sequence[Row], chunk: int, switch: int | None, decode_next: bool, ragged: bool = True
) -> Step | None:
    """The next step over `rows` (by slot), None without any.

    A row with more than one pending token is prefilled in chunks, one row a step, the most urgent first. With
    `decode_next` the decoding rows go before a waiting prefill, so that a long prompt does not stall them. Rows on the
    two sides of a LongRoPE switch never share a step, and a row still in prefill never goes along with decoding ones,
    nor is one token of a prompt left for the last chunk: attention computes a step of one token in another order, the
    operators round its last bits to int8, and so a logit may move by a twentieth of their spread, enough to turn a
    close choice. Chunks of two tokens or more give the bits of a prompt read at once. `ragged` False keeps every row
    in a step of its own.
    """
    for row in rows:
        settle_rope(row, switch)
    prefill = [slot for slot, row in enumerate(rows) if row.pending > 1]
    decode = [slot for slot, row in enumerate(rows) if row.pending == 1]
    if prefill and not (decode and decode_next):
        slot = min(prefill, key=lambda s: (-rows[s].request.priority, rows[s].started))
        row = rows[slot]
        count = min(chunk, row.pending)
        if row.pending - count == 1 and count > 2:
            count -= 1
        return Step(slot, 1, count, _width(rows[slot : slot + 1], count, switch), prefill=True)
    if not decode:
        return None
    # The row that has waited longest leads; neighbours on its side of the switch come along. Were it the one with the
    # fewest tokens, new short jobs could hold up a long one on the other side for ever.
    lead = min(decode, key=lambda s: rows[s].last_step)
    first = last = lead
    if ragged:
        together = {slot for slot in decode if rows[slot].long_rope == rows[lead].long_rope}
        while first - 1 in together:
            first -= 1
        while last + 1 in together:
            last += 1
    return Step(first, last - first + 1, 1, _width(rows[first : last + 1], 1, switch), prefill=False)


def _width(rows: Sequence[Row], count: int, switch: int | None) -> int:
    """Mask columns: the longest row, widened past the switch while a long prompt's first chunks are still short."""
    width = max(row.cached for row in rows) + count
    if switch is not None and rows[0].long_rope:
        width = max(width, switch + 1)
    return width
