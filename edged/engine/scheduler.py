"""Decides what the next step computes. Pure: it reads rows and returns a step, it runs and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from edged.engine.labels import Path
from edged.engine.sequence import Sequence
from edged.engine.splits import LEAST_CHUNK, SplitRule

_ANYWHERE = SplitRule()


@dataclass(frozen=True)
class StepPlan:
    """`count` tokens for each of the neighbouring rows first … first+rows-1, with a mask of `width` columns.

    `companion`: a lone row shares its step with the slot after it, which has so many tokens in the cache. The keys and
    values that the step writes there are overwritten when that row computes the same position itself.

    `drafts`: guesses, which are the last of the `count` tokens. Only a step of one row has some.

    `branches`: labels whose last tokens are computed in the slots after a lone row (branches.py).
    """

    first: int
    rows: int
    count: int
    width: int
    companion: int | None = None
    drafts: tuple[int, ...] = ()
    branches: tuple[Path, ...] = ()

    @property
    def known(self) -> int:
        """Tokens of each row that are not drafts."""
        return self.count - len(self.drafts)

    @property
    def chunk(self) -> bool:
        """Whether the step reads several tokens of one row."""
        return self.known > 1


def schedule(
    rows: Rows[Sequence],
    chunk: int,
    switch: int | None,
    last_chunk: int = 0,
    pad_lone_row: bool = False,
    splits: SplitRule = _ANYWHERE,
) -> StepPlan | None:
    """The next step over `rows` (by slot), None when there is nothing to compute.

    A row that is behind is read in chunks of at most `chunk` tokens as far as `splits` allows, one row a step, the
    lowest rank first. Rows that have not had a token since step `last_chunk`, the last one that read a chunk, go before
    the next chunk, so that a long prompt does not stall them. `switch`: the LongRoPE switch in tokens, if there is one.
    `pad_lone_row` gives a companion to a row that would be alone in a step of one token.
    """
    behind = [slot for slot, row in enumerate(rows) if row.behind and not row.reading]
    due = [slot for slot, row in enumerate(rows) if row.pending and not row.behind]
    if behind and not any(rows[slot].last_step < last_chunk for slot in due):
        slot = min(behind, key=lambda s: (rows[s].request.rank, rows[s].started))
        count = splits.chunk(rows[slot].computed, rows[slot].pending, chunk)
        return StepPlan(slot, 1, count, _width(rows[slot : slot + 1], count, switch))
    if not due:
        return None
    # The row that has waited longest leads; neighbours with its key come along. Were it the one with the fewest
    # tokens, new short jobs could hold up a long one on the other side of the switch for ever.
    first = last = lead = min(due, key=lambda s: rows[s].last_step)
    key = rows[lead].batch_key
    if key is not None:
        together = {slot for slot in due if rows[slot].batch_key == key}
        while first - 1 in together:
            first -= 1
        while last + 1 in together:
            last += 1
    width = _width(rows[first : last + 1], 1, switch)
    companion = None
    if pad_lone_row and first == last:
        # A free slot is overwritten from its start by the next row that gets it.
        companion = rows[last + 1].computed if last + 1 < len(rows) else 0
        width = max(width, companion + 1)
    return StepPlan(first, last - first + 1, 1, width, companion)


def token_steps(rows: Rows[Sequence]) -> int:
    """How many steps give each row that is not behind one token, with one that a row may have for forced tokens."""
    due = [row for row in rows if row.pending and not row.behind]
    keys = [row.batch_key for row in due]
    forced = len(due) > 1 and any(row.drafts is not None and row.constraint is not None for row in due)
    return len(set(keys) - {None}) + keys.count(None) + forced


def _width(rows: Rows[Sequence], count: int, switch: int | None) -> int:
    """Mask columns: the longest row, widened past the switch while a long prompt's first chunks are still short."""
    width = max(row.computed for row in rows) + count
    if switch is not None and rows[0].long_rope:
        width = max(width, switch + 1)
    return width


class ChunkBudget:
    """Measures steps and moves, and limits chunks so that rows do not wait too long for their next token."""

    _WEIGHT = 0.2
    _FIRST_CHUNK = 16
    """Before anything was measured."""
    _ALONE_SECONDS, _FIRST_ALONE = 30.0, 64
    """The same where no row waits for a token: a cancel waits for the step's end, and one that takes minutes counts as
    hung."""
    _SHARE = 0.75
    """Of the time there is: the next step may take longer than the last ones."""
    _SLOW_CHUNKS = 3
    """So many in a row that take longer than max_stall are no accident."""

    def __init__(self, max_stall: float, least: int = LEAST_CHUNK) -> None:
        """`max_stall`: the longest that a row should wait for its next token, in seconds.

        `least`: tokens that a chunk has at least, because shorter ones would change bits.
        """
        self.max_stall = max_stall
        self._least = least
        self._slow = 0
        self.kept = True
        """False once even the shortest chunks take longer than `max_stall`."""
        self._chunk_token: float | None = None
        self._token_step = 0.0
        self._moves = 0.0
        """Seconds that rows were moved since the last step of single tokens."""

    def note(self, step: StepPlan, seconds: float) -> None:
        """Learn from a step that took `seconds`."""
        if step.chunk:
            each = seconds / step.count
            if step.count >= self._least:  # a shorter one, at a prompt's end, is slower by the token
                self._slow = self._slow + 1 if each * self._least > self.max_stall else 0
                self.kept &= self._slow < self._SLOW_CHUNKS
            # Slower counts at once, faster only bit by bit: a bound is kept from above.
            if self._chunk_token is None or each > self._chunk_token:
                self._chunk_token = each
            else:
                self._chunk_token += self._WEIGHT * (each - self._chunk_token)
        else:
            self._token_step += self._WEIGHT * (seconds - self._token_step)
            self._moves = 0.0

    def note_moves(self, seconds: float) -> None:
        """Count time that rows of the cache were moved: the rows that wait for a token have waited for it."""
        self._moves += seconds

    def chunk(self, most: int, steps: int) -> int:
        """Tokens of a chunk that comes between two rounds of `steps` steps of single tokens."""
        if self._chunk_token is None:
            return min(most, self._FIRST_CHUNK if steps else self._FIRST_ALONE)
        left = self._SHARE * self.max_stall - steps * self._token_step - self._moves if steps else self._ALONE_SECONDS
        return max(LEAST_CHUNK, min(most, int(left / self._chunk_token)))
