"""Labels of a choice that end where others go on, computed in free slots: one step for them and for the row itself.

A free slot gets a copy of the row's keys and values up to the label's last token, for this step only. It has the bits
of a step of several rows, as the row has without company, so that no probability depends on the slots that are free.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import replace

from edged.engine.kv_cache import KVCache
from edged.engine.labels import Path
from edged.engine.package import Package
from edged.engine.scheduler import StepPlan
from edged.engine.sequence import Sequence


def longest_copy(package: Package, cache: KVCache) -> int:
    """Tokens of a row whose copy moves half the bytes that a step reads of the weights: a longer one saves no time."""
    return package.step_bytes // (4 * cache.layout.token_bytes)


def with_branches(plan: StepPlan, rows: Rows[Sequence], free: int, longest: int, switch: int | None) -> StepPlan:
    """`plan` with labels beside its row, where that is the last one, goes through labels and is alone in the step.

    `free`: slots after the last row. `longest`: as longest_copy(). `switch`: as for schedule(); a label on the other
    side of it waits for its own step.
    """
    row = rows[plan.first]
    if row.scores is None or plan.count > 1 or plan.rows > 1 or plan.first + 1 < len(rows):
        return plan
    if free < 1 or row.computed > longest or row.batch_key is None:
        return plan
    prompt = len(row.request.prompt)
    ends = [
        label
        for label in row.scores.ends_beside(free)
        if switch is None or (prompt + len(label) > switch) == row.long_rope
    ]
    return replace(plan, branches=tuple(ends), companion=None) if ends else plan


def copy_row(plan: StepPlan, row: Sequence, cache: KVCache) -> None:
    """Give the slots after the row what its branches begin with."""
    for slot, label in enumerate(plan.branches, plan.first + 1):
        cache.move(plan.first, slot, past_of(row, label))


def past_of(row: Sequence, label: Path) -> int:
    """Tokens before a label's last one."""
    return len(row.request.prompt) + len(label) - 1
