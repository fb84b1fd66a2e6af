"""Serves real JSON schemas with marked values: check.py FOLDER PACKAGE… ; FOLDER holds .jsonl or .jsonl.gz files.

Prints how many schemas are served with each package's tokenizer, why others are not, and every value that is judged
wrongly: a valid one that no answer can be, an invalid one that an answer can be. Fails where there is one.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from judging import Judge, Verdict, read_cases

LEAST = 0.92


def main() -> int:
    folder, *packages = map(Path, sys.argv[1:])
    files = sorted((*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")))
    if not files or not packages:
        sys.exit(str(__doc__).splitlines()[0])
    failed = False
    for package in packages:
        verdict, judge = Verdict(), Judge(package)
        for file in files:
            for case in read_cases(file):
                judge.judge(case, verdict)
        judge.close()
        failed |= not report(package.name, verdict)
    return int(failed)


def report(name: str, verdict: Verdict) -> bool:
    """Print a verdict; whether it is as wanted."""
    count = verdict.served + len(verdict.refused)
    share, masks = verdict.served / count, np.array(verdict.mask_seconds) * 1e6
    print(f"{name}: {verdict.served} of {count} schemas served ({share:.1%}), {verdict.judged} values judged")
    print(f"  masks: {len(masks)}, p50 {np.percentile(masks, 50):.0f} µs, p99 {np.percentile(masks, 99):.0f} µs")
    for reason, times in Counter(verdict.refused.values()).most_common():
        print(f"  refused {times}: {reason[:160]}")
    for case, valid, value in verdict.wrong:
        print(f"  WRONG {'refused' if valid else 'accepted'}: {case}: {json.dumps(value, ensure_ascii=False)[:200]}")
    return share >= LEAST and not verdict.wrong


if __name__ == "__main__":
    sys.exit(main())
