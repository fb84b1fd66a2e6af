"""A small fleet under virtual time; `make simulate` runs large ones, and `make simulate-selftest` all sabotages."""

from __future__ import annotations

from simulator.sabotages import SABOTAGES, sabotaged
from simulator.world import simulate

SEED = 2


def test_a_day_of_faults_breaks_no_promise() -> None:
    outcome = simulate(SEED, boards=10, days=1.0, jobs=False)
    assert [violation.line() for violation in outcome.violations] == []
    assert sum(outcome.rollouts.values()) >= 1
    assert sum(outcome.faults.values()) > 10


def test_jobs_that_boards_give_to_each_other_are_answered() -> None:
    outcome = simulate(SEED, boards=5, days=0.5)
    assert [violation.line() for violation in outcome.violations] == []
    assert outcome.jobs > 5
    assert outcome.handed_over >= 1


def test_a_seed_replays_a_run_exactly() -> None:
    one, other, another = (simulate(seed, boards=3, days=0.4) for seed in (SEED, SEED, SEED + 1))
    assert one == other
    assert one.trace != another.trace


def test_the_oracles_see_a_trial_that_is_skipped() -> None:
    with sabotaged(SABOTAGES["prove skipped"]):
        outcome = simulate(SEED, boards=10, days=1.0, jobs=False)
    assert {violation.oracle for violation in outcome.violations} == {"trial"}
