"""`make simulate-selftest`: the oracles see each broken promise with each of several seeds, and nothing otherwise."""

from __future__ import annotations

import argparse
import sys
import time

from .sabotages import SABOTAGES, sabotaged
from .world import Outcome, simulate

BOARDS = 10
DAYS, JOB_DAYS = 12.0, 4.0
"""Days of a run: until rollouts of all kinds of packages came; until hand-overs met all kinds of faults."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="only sabotages whose name contains this")
    arguments = parser.parse_args()
    began, wrong = time.monotonic(), 0
    print(f"{'sabotage':<24} {'seed':>6} {'violations':>10}  first", flush=True)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for jobs in (False, True):
            outcome = _simulate(seed, jobs)
            wrong += bool(outcome.violations)
            first = outcome.violations[0].line() if outcome.violations else ""
            print(f"{'none':<24} {seed:>6} {len(outcome.violations):>10}  {first}", flush=True)
        for name, sabotage in SABOTAGES.items():
            if arguments.only not in name:
                continue
            with sabotaged(sabotage):
                outcome = _simulate(seed, sabotage.jobs)
            seen = [one for one in outcome.violations if one.oracle in sabotage.seen_by]
            wrong += not seen
            first = seen[0].line() if seen else "NOT FOUND"
            print(f"{name:<24} {seed:>6} {len(outcome.violations):>10}  {first}", flush=True)
    told = "WRONG" if wrong else "each sabotage was found, and nothing without one"
    print(f"{told}: {time.monotonic() - began:.0f} s")
    return bool(wrong)


def _simulate(seed: int, jobs: bool) -> Outcome:
    return simulate(seed, BOARDS, JOB_DAYS if jobs else DAYS, jobs)


if __name__ == "__main__":
    sys.exit(main())
