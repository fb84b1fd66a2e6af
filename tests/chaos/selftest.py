"""`make chaos-selftest`: the oracle turns red for each of three broken promises, and stays green without."""

from __future__ import annotations

import argparse
import sys

import phases
from run import open_log
from world import HEADER

SABOTAGES = ("", "acknowledge-before-commit", "no-dedupe", "outbox-cleared-at-publish")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run that printed it")
    failed = []
    with open_log("chaos-selftest", parser.parse_args().seed) as (seed, log):
        print(HEADER, flush=True)
        for sabotage in SABOTAGES:
            outcome = phases.selftest(seed, log, sabotage)
            print(outcome.line(), flush=True)
            seen = outcome.verdict.lost or outcome.verdict.ran_again
            if not (seen if sabotage else outcome.verdict.green):
                failed.append(f"{sabotage or 'the unsabotaged run'}; kept: {outcome.folder}")
            else:
                outcome.forget()
    for name in failed:
        print(f"WRONG: the oracle misjudged {name}")
    if not failed:
        print("the oracle saw each sabotage, and nothing where there was none")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
