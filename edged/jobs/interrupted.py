"""Accounts for the jobs and pinned prompts that ran when the process before this one ended."""

from __future__ import annotations

import structlog

from edged.jobs.crash import LastEnd
from edged.jobs.records import Queued
from edged.jobs.spool import Spool

log = structlog.get_logger(__name__)

MAX_CRASHES = 3
"""After so many crashes of the process's own making while it ran alone, a job or a pinned prompt is not run again."""


def recover(spool: Spool, end: LastEnd) -> tuple[list[Queued], list[tuple[Queued, str]]]:
    """Account for what was running at the `end` of the last process.

    Returns the jobs to queue again, and those that must not run again, with the reason. Raises SpoolError.
    """
    unfinished = {queued.number: queued for queued in spool.queued()}
    # Pinned prompts have numbers below zero. A job that was forgotten meanwhile was company too.
    running = [number for number in end.running if number < 0 or number in unfinished]
    jobs = [number for number in running if number >= 0]
    if end.crash is not None:
        ids = [unfinished[number].id for number in jobs]
        log.error("crashed_before", reason=end.crash, jobs=ids, pinned=len(running) - len(jobs))
    if running:
        crashed, alone = end.crash is not None, len(end.running) == 1
        with spool.transaction():
            for number in running:
                if number >= 0 or crashed:
                    spool.note_interrupted(number, crashed_alone=crashed and alone, suspect=crashed and not alone)
        unfinished = {queued.number: queued for queued in spool.queued()}
    if unfinished:
        log.info("jobs_recovered", queued=len(unfinished), interrupted=len(jobs))
    again: list[Queued] = []
    never: list[tuple[Queued, str]] = []
    for queued in unfinished.values():
        if queued.crashes < MAX_CRASHES:
            again.append(queued)
            continue
        last = f", last by {end.crash}" if end.crash is not None else ""
        never.append((queued, f"the daemon crashed {queued.crashes} times while it ran this job alone{last}"))
    return again, never
