"""Speculation without a second model: a step computes a row's newest token and a draft of those that may follow it.

`Sequence.verify` keeps as much of the draft as the model says itself. So drafts decide how many steps an answer takes
and never what it is, if tokens have the same bits in any step, which draft_probe.py finds out.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

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
        self._apart = 0
        """Number of the last step that one of several waiting rows had for itself."""

    def with_drafts(self, plan: StepPlan, rows: Rows[Sequence], switch: int | None, step: int) -> StepPlan:
        """`plan` with a draft, where it computes one token of the only row that waits for one.

        A graph takes several tokens of one row only, so of several rows one at most gets a step of its own between two
        that they share, and only for tokens that its grammar forces: at least as many as the shared step would make. A
        step of so many tokens of one row takes no longer than one of as many rows. `switch`: as for schedule(). A draft
        does not reach beyond it. `step`: the number of this one.
        """
        if plan.count > 1:
            return plan
        waiting = [row for row in rows if row.pending > 0 and not row.behind]
        if len(waiting) == 1:
            row = rows[plan.first]
            return _drafted(plan, plan.first, row, row.draft(_most(row, switch)))
        if min(row.last_step for row in waiting) < self._apart:
            return plan
        slots = range(plan.first, plan.first + plan.rows)
        runs = {slot: rows[slot].forced_run(_most(rows[slot], switch)) for slot in slots}
        slot = max(runs, key=lambda slot: len(runs[slot]))
        if not runs[slot] or 1 + len(runs[slot]) < plan.rows:
            return plan
        self._apart = step
        return _drafted(plan, slot, rows[slot], runs[slot])

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


def _most(row: Sequence, switch: int | None) -> int:
    """Tokens that a draft of this row may have; none before its first token."""
    if not row.made:
        return 0
    # A step makes one token more than its draft has.
    most = min(MOST_TOKENS, row.request.max_tokens - row.made) - 1
    if switch is not None and not row.long_rope:
        most = min(most, switch - len(row.tokens))
    return most


def _drafted(plan: StepPlan, slot: int, row: Sequence, drafts: tuple[int, ...]) -> StepPlan:
    """A step of this row of `plan` with these drafts; `plan` where there are none."""
    if not drafts:
        return plan
    width = max(row.computed + 1 + len(drafts), plan.width if row.long_rope else 0)
    return StepPlan(slot, 1, 1 + len(drafts), width, drafts=drafts)
