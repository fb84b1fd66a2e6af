"""`make simulate`: a fleet of boards, some days of faults, and whether the promises of rollouts and jobs held."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter

from .world import Outcome, simulate

MOST_SHOWN = 20
_COLUMNS = "{:>8} {:>6} {:>5} {:>9} {:>8} {:>6} {:>7} {:>10} {:>10} {:>6}  {}"
HEAD = _COLUMNS.format(
    "seed", "boards", "days", "events", "rollouts", "worst", "jobs", "hand-overs", "violations", "CPU s", "trace"
)


def row(one: Outcome, seconds: float) -> str:
    """One run."""
    counted = one.events, sum(one.rollouts.values()), f"{one.worst:.1%}", one.jobs, one.handed_over
    return _COLUMNS.format(
        one.seed, one.boards, f"{one.days:g}", *counted, len(one.violations), f"{seconds:.0f}", one.trace
    )


def summary(outcomes: list[Outcome]) -> list[str]:
    """What happened in all of them."""
    faults: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for one in outcomes:
        faults.update(one.faults)
        verdicts.update(one.rollouts)
    ended = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    injected = ", ".join(f"{count} × {kind}" for kind, count in sorted(faults.items()))
    return [f"rollouts: {ended}", f"faults: {injected}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    parser.add_argument("--seeds", type=int, default=1, help="so many runs, with seeds one after another")
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--days", type=float, default=30.0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that files in memory are removed
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    began, outcomes = time.monotonic(), []
    print(f"edged simulate — seed {seed} (make simulate SEED={seed} repeats it)\n{HEAD}", flush=True)
    for number in range(seed, seed + arguments.seeds):
        before = time.process_time()
        outcomes.append(simulate(number, arguments.boards, arguments.days))
        print(row(outcomes[-1], time.process_time() - before), flush=True)
        for violation in outcomes[-1].violations[:MOST_SHOWN]:
            print(f"  {violation.line()}", flush=True)
    red = sum(len(one.violations) for one in outcomes)
    print("\n".join(summary(outcomes)))
    print(f"{'RED' if red else 'green'}: {red} violations, {time.monotonic() - began:.0f} s")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
