"""`make chaos`: faults upon faults, and whether any job was lost or ran again.

Prints its seed and a table; what it did and when is in .chaos/chaos-SEED.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faults
import phases
from places import Skipped
from world import HEADER, FaultLog

LOGS = Path(__file__).parents[2] / ".chaos"


@contextlib.contextmanager
def open_log(target: str, seed: int | None = None) -> Iterator[tuple[int, FaultLog]]:
    """The seed and the log of a run of the make target; says how to repeat it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was begun is cleared away
    seed = seed if seed is not None else random.SystemRandom().randrange(1_000_000)
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{target}-{seed}.jsonl"
    print(f"edged {target} — seed {seed} (make {target} SEED={seed} repeats it), log {path}", flush=True)
    with path.open("w", encoding="utf-8") as file:
        yield seed, FaultLog(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    parser.add_argument("--kills", type=int, default=phases.KILLS, help="in every stage of a job's life")
    parser.add_argument("--only", default="", help="only the phases whose name contains this")
    arguments = parser.parse_args()
    began, outcomes = time.monotonic(), []
    with open_log("chaos", arguments.seed) as (seed, log):
        print(HEADER, flush=True)
        some = {"kill -9": functools.partial(phases.kills, each=arguments.kills)}
        for name, phase in (phases.PHASES | some).items():
            if arguments.only not in name:
                continue
            try:
                outcomes.append(phase(seed, log))
            except Skipped as skipped:
                print(f"{name:<26} skipped: {skipped}", flush=True)
            else:
                print(outcomes[-1].line(), flush=True)
                if not outcomes[-1].verdict.green:
                    print(f"  kept: {outcomes[-1].folder}", flush=True)
    green = all(outcome.verdict.green for outcome in outcomes)
    jobs, seconds = sum(outcome.jobs for outcome in outcomes), time.monotonic() - began
    kills = {name.removeprefix("kill "): n for name, n in log.totals.items() if name.startswith("kill ")}
    print("kills by instant: " + ", ".join(f"{kills.get(stage, 0)} {stage}" for stage in faults.STAGES))
    print(f"{'green' if green else 'RED'}: {jobs} jobs, {seconds:.0f} s")
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
