"""`make simulate-selftest`: the oracles see each broken promise with each of several seeds, and nothing otherwise."""

from __future__ import annotations

import argparse
import sys
import time

from .sabotages import SABOTAGES, sabotaged
from .world import simulate

BOARDS, DAYS = 10, 12.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    began, wrong = time.monotonic(), 0
    print(f"{'sabotage':<24} {'seed':>6} {'violations':>10}  first")
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        outcome = simulate(seed, BOARDS, DAYS)
        wrong += bool(outcome.violations)
        print(f"{'none':<24} {seed:>6} {len(outcome.violations):>10}", flush=True)
        for name, sabotage in SABOTAGES.items():
            with sabotaged(sabotage):
                outcome = simulate(seed, BOARDS, DAYS)
            seen = [one for one in outcome.violations if one.oracle in sabotage.seen_by]
            wrong += not seen
            first = seen[0].line() if seen else "NOT FOUND"
            print(f"{name:<24} {seed:>6} {len(outcome.violations):>10}  {first}", flush=True)
    told = "WRONG" if wrong else "each sabotage was found, and nothing without one"
    print(f"{told}: {time.monotonic() - began:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
