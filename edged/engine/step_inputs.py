"""What a planned step is given, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from edged.engine.branches import past_of
from edged.engine.scheduler import StepPlan
from edged.engine.sequence import Sequence
from edged.engine.steps import StepRow


def inputs_of(plan: StepPlan, rows: Rows[Sequence]) -> tuple[NDArray[np.int64], list[int]]:
    """For ModelSession.step() over `rows`: ids [rows + branches, tokens], and past."""
    known = [row.tokens[row.computed : row.computed + plan.known] for row in rows]
    ids = [[*tokens, *plan.drafts] for tokens in known] + [[label[-1]] for label in plan.branches]
    past = [row.computed for row in rows] + [past_of(rows[0], label) for label in plan.branches]
    return np.array(ids, np.int64), past + ([] if plan.companion is None else [plan.companion])


def told_of(plan: StepPlan, rows: Rows[Sequence]) -> tuple[StepRow, ...]:
    """Each row's part of the step."""
    tokens = plan.count + len(plan.branches)
    return tuple(StepRow(row.request.key, tokens, row.computed < row.given, row.computed) for row in rows)
