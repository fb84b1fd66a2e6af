"""What becomes of the jobs that a process before this one left without a result."""

from __future__ import annotations

import structlog

from edged.jobs.crash import LastEnd
from edged.jobs.spool import Queued, Spool

log = structlog.get_logger(__name__)

MAX_CRASHES = 3
"""So many crashes of the process's own making while it ran a job alone, and the job is not run again."""


def recover(spool: Spool, end: LastEnd) -> tuple[list[Queued], list[tuple[Queued, str]]]:
    """Account for what was running at the `end` of the last process.

    Returns the jobs to queue again, and those that must not run again, with the reason. Raises SpoolError.
    """
    unfinished = {queued.seq: queued for queued in spool.queued()}
    running = [seq for seq in end.running if seq in unfinished]
    if end.crash is not None:
        log.error("crashed_before", reason=end.crash, jobs=[unfinished[seq].id for seq in running])
    if running:
        alone = len(running) == 1
        with spool.transaction():
            for seq in running:
                spool.note_interrupted(
                    seq,
                    crashed_alone=end.crash is not None and alone,
                    suspect=end.crash is not None and not alone,
                )
        unfinished = {queued.seq: queued for queued in spool.queued()}
    if unfinished:
        log.info("jobs_recovered", queued=len(unfinished), interrupted=len(running))
    again: list[Queued] = []
    never: list[tuple[Queued, str]] = []
    for queued in unfinished.values():
        if queued.crashes < MAX_CRASHES:
            again.append(queued)
            continue
        last = f", last by {end.crash}" if end.crash is not None else ""
        never.append((queued, f"the daemon crashed {queued.crashes} times while it ran this job alone{last}"))
    return again, never
