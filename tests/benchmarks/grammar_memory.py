"""What structured answers take of memory with a large vocabulary: `make bench-grammar-memory` prints the table.

Resident memory of a process that serves a package, before the first grammar, after it, and after eight answers at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from figures import Figure, show
from structured import Runner, prepared

from edged import logs

MOST = 60
"""MiB."""
ROWS = 8


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def answers(runner: Runner, forms: list[dict[str, Any]]) -> None:
    fields = {"prompt": "Say something:", "max_tokens": 24}
    jobs = [prepared(runner.loaded, response_format=form, number=number, **fields) for number, form in enumerate(forms)]
    runner.run(jobs)


def schema(number: int) -> dict[str, Any]:
    one = {"type": "object", "properties": {f"value_{number}": {"type": "string"}}, "required": [f"value_{number}"]}
    return {"type": "json_schema", "json_schema": {"schema": {**one, "additionalProperties": False}}}


def memory(package: Path) -> Iterator[Figure]:
    runner = Runner(ROWS, package)
    vocabulary = runner.loaded.package.vocabulary
    answers(runner, [{"type": "text"}] * ROWS)  # takes the memory of rows and steps
    before, loaded = resident(), "llguidance" in sys.modules
    name = f"grammars of {vocabulary} tokens: resident memory"
    yield Figure(f"{name}, before one is used", f"{'llguidance is loaded' if loaded else '0'}", "0", not loaded)
    answers(runner, [schema(0)])
    first = resident() - before
    yield Figure(f"{name}, one answer", f"+{first:.0f} MiB", f"<= {MOST}", first <= MOST)
    answers(runner, [schema(number) for number in range(ROWS)])
    more = resident() - before
    yield Figure(f"{name}, {ROWS} answers at once", f"+{more:.0f} MiB", f"<= {MOST}", more <= MOST)
    runner.close()


def main() -> None:
    logs.configure("error", "auto")
    show(memory(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
