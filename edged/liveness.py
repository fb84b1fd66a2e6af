"""Decides whether the daemon's threads make progress: a function of what each of them works on, and since when."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edged.faults import Fault

STUCK_SECONDS = 120.0
"""Longest time that one task of a thread may take. The engine keeps its steps far below this."""
LOAD_SECONDS = 120.0
"""The same for a load of the model, besides the time that reading the files takes."""
SCALES_SECONDS = 300.0
"""What a load may take longer where it measures the scales of an int8 KV cache: two tokens per second."""
SLOWEST_CARD = 20e6
"""Bytes per second that a slow SD card still reads."""


@dataclass(frozen=True)
class Task:
    """A task that one thread does again and again. `since`: start of the present one (CLOCK_MONOTONIC), None between.

    `jobs`: numbers of the jobs that the crash ledger blames when the task hangs; None: all that have a row.
    """

    code: str
    name: str
    since: float | None
    limit: float
    jobs: tuple[int, ...] | None = ()


@dataclass(frozen=True)
class EndedThread:
    """A thread that ended while the daemon still needs it. `jobs` as in Task."""

    name: str
    reason: str = ""
    jobs: tuple[int, ...] | None = ()


@dataclass(frozen=True)
class Failure:
    """A thread that will not go on: the process has to end. `jobs` as in Task; `reason` is for the crash ledger."""

    fault: Fault
    reason: str
    jobs: tuple[int, ...] | None


def find_failure(tasks: Iterable[Task], ended: Iterable[EndedThread], now: float) -> Failure | None:
    """The first thread that has ended, else the first task that takes longer than its limit at `now`."""
    for thread in ended:
        reason = f"the {thread.name} thread has ended" + (f": {thread.reason}" if thread.reason else "")
        return Failure(Fault("thread_ended", reason), reason, thread.jobs)
    for task in tasks:
        if task.since is not None and now - task.since > task.limit:
            # No seconds in the fault's message: it would be news at every turn.
            fault = Fault(task.code, f"{task.name} has taken longer than {task.limit:.0f} s")
            return Failure(fault, f"{task.name} hung for {now - task.since:.0f} s", task.jobs)
    return None


def load_limit(folder: Path, int8: bool = False) -> float:
    """Seconds that a load of the package in `folder` may take. `int8`: with an int8 KV cache.

    Counted are all files below it, since weights may lie deeper: no less than what a load reads. They may be read
    twice, for their checksums and for onnxruntime, where memory is too small for the page cache to keep them; a load
    that measures scales loads the model twice.
    """
    size = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            with suppress(OSError):  # the load fails and says why
                size += (Path(place) / name).stat().st_size
    return LOAD_SECONDS + int8 * SCALES_SECONDS + (2 + int8) * size / SLOWEST_CARD
