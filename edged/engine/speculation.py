"""Speculation without a second model: a step computes a row's newest token and a draft of those that may follow it.

`Sequence.verify` keeps as much of the draft as the model says itself. So drafts decide how many steps an answer takes
and never what it is, if tokens have the same bits in any step, which draft_probe.py finds out.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edged.engine.drafts import MOST_TOKENS
from edged.engine.scheduler import StepPlan
from edged.engine.sequence import Sequence


class Speculation:
    """Adds drafts to steps and counts what became of them. The engine's thread owns it."""

    def __init__(self) -> None:
        self.accepted = 0
        """Tokens of drafts that became tokens of answers, but for those that a grammar forced."""
        self.rejected = 0
        """Tokens of drafts that did not."""
        self.forced = 0
        """Tokens of drafts that a grammar forced."""

    def with_drafts(self, plan: StepPlan, rows: Rows[Sequence], switch: int | None) -> StepPlan:
        """`plan` with a draft, where it computes one token of the only row that waits for one.

        A graph takes several tokens of one row only, so with more rows each draft would need a step of its own.
        `switch`: as for schedule(). A draft does not reach beyond it.
        """
        row = rows[plan.first]
        waiting = sum(one.pending > 0 and not one.behind for one in rows)
        if plan.count > 1 or waiting > 1 or row.drafts is None or not row.made:
            return plan
        # A step makes one token more than its draft has.
        most = min(MOST_TOKENS, row.request.max_tokens - row.made) - 1
        if switch is not None and not row.long_rope:
            most = min(most, switch - len(row.tokens))
        drafts = row.draft(most)
        if not drafts:
            return plan
        width = max(row.computed + 1 + len(drafts), plan.width if row.long_rope else 0)
        return replace(plan, count=1 + len(drafts), drafts=drafts, width=width, companion=None)

    def advance(self, row: Sequence, logits: NDArray[np.floating], drafts: tuple[int, ...]) -> list[int]:
        """Choose a row's tokens after a step: `logits` are [vocabulary], or with drafts [1 + drafts, vocabulary].

        Returns the tokens made. Raises as Sequence.advance().
        """
        if not drafts:
            return row.advance(logits)
        speculated, forced = row.speculated, row.forced
        made = row.verify(logits, drafts)
        speculated, forced = row.speculated - speculated, row.forced - forced
        self.accepted += speculated
        self.forced += forced
        self.rejected += len(drafts) - forced - speculated
        if row.drafts is not None and len(drafts) > forced:
            row.drafts.note(len(drafts) - forced, speculated)
        return made
