"""Decides what the next step computes. Pure: it looks at rows and returns a step, it runs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edged.engine.sampler import Sampling
from edged.engine.tokenizer import TextStream

PRIORITY_SECONDS = 300.0
"""What one step of priority is worth: a job goes before those of the next priority that came this much later. So the
urgent go first, and nobody waits for ever."""
LEAST_CHUNK = 2
"""Tokens of a prefill step. A step of one token takes another way through attention and gives other last bits, so a
prompt is never read token by token: then how it is split changes nothing, to the bit."""


@dataclass(frozen=True)
class Request:
    """What the engine needs of a job. `key` is the caller's; `received` is CLOCK_MONOTONIC seconds."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    stop: tuple[str, ...] = ()
    priority: int = 5
    received: float = 0.0
    stream: bool = False
    ignore_eos: bool = False
    store: bool = True
    """False: nothing of the prompt may come to lie on disk."""
    pin: bool = False
    """Keep the prompt's prefix on disk at once."""

    @property
    def rank(self) -> float:
        """Lower runs first."""
        return rank(self.priority, self.received)


def rank(priority: int, received: float) -> float:
    """Where a job of this priority, received at this second, stands in the queue: lower goes first."""
    return received - priority * PRIORITY_SECONDS


@dataclass(eq=False)
class Sequence:
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
    token_times: list[float] = field(default_factory=list)
    """When each token was made, CLOCK_MONOTONIC seconds."""
    last_step: int = 0
    """Number of the step that last moved this row on."""
    reused: int = 0
    """Tokens of the prompt that came from the prefix cache."""
    keys: tuple[bool, list[bytes]] | None = None
    """Keys of the prompt's blocks, and for which rope table."""
    disk_asked: bool = False
    reading: bool = False
    """Its prefix is being read from disk: nothing to compute yet."""
    unheld: list[int] = field(default_factory=list)
    """Its blocks that came from disk and that the cache in RAM does not hold yet, by number."""
    alone: bool = False
    """A step that it shared failed: it runs by itself until it is known not to be the cause."""

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

    @property
    def prefilling(self) -> bool:
        """Whether more than the next token is due."""
        return self.pending > 1


@dataclass(frozen=True)
class StepPlan:
    """`count` tokens for each of the neighbouring rows first … first+rows-1, with a mask of `width` columns.

    `companion`: a lone row shares its step with the slot after it, which has so many tokens in the cache. The keys and
    values that the step writes there are overwritten when that row computes the same position itself.
    """

    first: int
    rows: int
    count: int
    width: int
    prefill: bool
    companion: int | None = None


def settle_rope(row: Sequence, switch: int | None) -> None:
    """Forget a row's cache when it has crossed the LongRoPE switch: its keys were turned by the other table."""
    if switch is not None and row.long_rope != (len(row.tokens) > switch):
        row.long_rope, row.cached = not row.long_rope, 0
        row.unheld.clear()


def swaps(rows: list[Sequence]) -> list[tuple[int, int]]:
    """Exchanges of two slots, in order, after which rows that may share a step are neighbours.

    Rows beyond a LongRoPE switch come first, then the others; on each side decoding rows come before rows in prefill.
    So the slot after a lone decoding row on the short side is never beyond the switch, and may be its companion.
    """
    classes = [(not row.long_rope, row.prefilling, row.alone) for row in rows]
    found = []
    for slot in range(len(classes)):
        least = min(classes[slot:])
        if classes[slot] != least:
            # The last of its kind: the rows between stay where they are.
            other = len(classes) - 1 - classes[::-1].index(least)
            classes[slot], classes[other] = classes[other], classes[slot]
            found.append((slot, other))
    return found


def schedule(
    rows: list[Sequence],
    chunk: int,
    switch: int | None,
    last_prefill: int = 0,
    ragged: bool = True,
    pad_lone_row: bool = False,
) -> StepPlan | None:
    """The next step over `rows` (by slot), None when there is nothing to compute.

    A row with more than one pending token is prefilled in chunks of at most `chunk` tokens, one row a step, the lowest
    rank first. Rows that were decoding before step `last_prefill`, the last one that prefilled, go before the next
    chunk, so that a long prompt does not stall them. Rows on the two sides of a LongRoPE switch never share a step.
    `ragged` False keeps every row in a step of its own. `pad_lone_row` gives a companion to a row that would be alone
    in a step of one token.
    """
    for row in rows:
        settle_rope(row, switch)
    prefill = [slot for slot, row in enumerate(rows) if row.prefilling and not row.reading]
    decode = [slot for slot, row in enumerate(rows) if row.pending == 1]
    if prefill and not any(rows[slot].last_step < last_prefill for slot in decode):
        slot = min(prefill, key=lambda s: (rows[s].request.rank, rows[s].started))
        row = rows[slot]
        count = chunk_of(row.pending, chunk)
        return StepPlan(slot, 1, count, _width(rows[slot : slot + 1], count, switch), prefill=True)
    if not decode:
        return None
    # The row that has waited longest leads; neighbours on its side of the switch come along. Were it the one with the
    # fewest tokens, new short jobs could hold up a long one on the other side for ever.
    lead = min(decode, key=lambda s: rows[s].last_step)
    first = last = lead
    if ragged and not rows[lead].alone:
        together = {s for s in decode if rows[s].long_rope == rows[lead].long_rope and not rows[s].alone}
        while first - 1 in together:
            first -= 1
        while last + 1 in together:
            last += 1
    width = _width(rows[first : last + 1], 1, switch)
    companion = None
    if pad_lone_row and first == last:
        # A free slot is overwritten from its start by the next row that gets it.
        companion = rows[last + 1].cached if last + 1 < len(rows) else 0
        width = max(width, companion + 1)
    return StepPlan(first, last - first + 1, 1, width, prefill=False, companion=companion)


def chunk_of(pending: int, most: int) -> int:
    """How many of `pending` tokens, two or more, the next prefill step reads: never one, and never leaving one."""
    most = max(most, LEAST_CHUNK)
    if pending <= most:
        return pending
    if pending - most == 1:
        return most - 1 if most > LEAST_CHUNK else pending
    return most


def _width(rows: list[Sequence], count: int, switch: int | None) -> int:
    """Mask columns: the longest row, widened past the switch while a long prompt's first chunks are still short."""
    width = max(row.cached for row in rows) + count
    if switch is not None and rows[0].long_rope:
        width = max(width, switch + 1)
    return width


class ChunkBudget:
    """What steps cost of late, and so how many tokens a prefill step may have while others wait for their next one."""

    _WEIGHT = 0.2
    _FIRST_CHUNK = 16
    """Before anything was measured."""
    _ALONE_SECONDS, _FIRST_ALONE = 30.0, 64
    """The same where no row decodes: a cancel waits for a step's end, and one that takes minutes counts as hung."""
    _SHARE = 0.75
    """Of the time there is: the next step may take longer than the last ones."""

    def __init__(self, max_stall: float) -> None:
        """`max_stall`: the longest that a row should wait for its next token, in seconds."""
        self.max_stall = max_stall
        self._prefill: float | None = None
        self._decode = 0.0

    def note(self, step: StepPlan, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        if step.prefill:
            each = seconds / step.count
            # Slower counts at once, faster only bit by bit: a bound is kept from above.
            if self._prefill is None or each > self._prefill:
                self._prefill = each
            else:
                self._prefill += self._WEIGHT * (each - self._prefill)
        else:
            self._decode += self._WEIGHT * (seconds - self._decode)

    def chunk(self, most: int, decode_steps: int) -> int:
        """Tokens of a prefill step that comes between two rounds of `decode_steps` decoding steps."""
        if self._prefill is None:
            return min(most, self._FIRST_CHUNK if decode_steps else self._FIRST_ALONE)
        left = self._SHARE * self.max_stall - decode_steps * self._decode if decode_steps else self._ALONE_SECONDS
        return max(LEAST_CHUNK, min(most, int(left / self._prefill)))
