"""`make simulate`: a fleet of boards, some days of faults, and whether the promises of rollouts held."""

from __future__ import annotations

import argparse
import random
import sys
import time

from .world import Outcome, simulate


def table(outcomes: list[Outcome], seconds: float) -> list[str]:
    """For people."""
    faults: dict[str, int] = {}
    lines = [
        f"{'seed':>8} {'boards':>6} {'days':>5} {'events':>9} {'rollouts':>8} {'worst':>6} {'violations':>10}  trace"
    ]
    for one in outcomes:
        rollouts = sum(one.rollouts.values())
        lines.append(
            f"{one.seed:>8} {one.boards:>6} {one.days:>5g} {one.events:>9} {rollouts:>8} {one.worst:>6.1%} "
            f"{len(one.violations):>10}  {one.trace}"
        )
        for kind, count in one.faults.items():
            faults[kind] = faults.get(kind, 0) + count
    verdicts: dict[str, int] = {}
    for one in outcomes:
        for verdict, count in one.rollouts.items():
            verdicts[verdict] = verdicts.get(verdict, 0) + count
    lines.append("rollouts: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())))
    lines.append("faults: " + ", ".join(f"{count} × {kind}" for kind, count in sorted(faults.items())))
    for one in outcomes:
        lines += [f"  {violation.line()}" for violation in one.violations[:20]]
        if len(one.violations) > 20:
            lines.append(f"  … and {len(one.violations) - 20} more")
    red = sum(len(one.violations) for one in outcomes)
    lines.append(f"{'RED' if red else 'green'}: {red} violations, {seconds:.0f} s")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    parser.add_argument("--seeds", type=int, default=1, help="so many runs, with seeds one after another")
    parser.add_argument("--boards", type=int, default=500)
    parser.add_argument("--days", type=float, default=30.0)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    began = time.monotonic()
    print(f"edged simulate — seed {seed} (make simulate SEED={seed} repeats it)", flush=True)
    outcomes = [simulate(seed + number, arguments.boards, arguments.days) for number in range(arguments.seeds)]
    print("\n".join(table(outcomes, time.monotonic() - began)))
    return 1 if any(one.violations for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
