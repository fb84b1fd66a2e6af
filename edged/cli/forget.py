"""`edged forget`: erases a job, or everything stored."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from edged.cli.common import FAILED, BadUseError, ConfigOption, end, settings_or_exit
from edged.engine.prefix_files import PREFIXES
from edged.engine.prefix_files import erase as erase_prefixes
from edged.jobs.spool import Spool, discard
from edged.settings import Settings

SCRUB_SECONDS = 15.0
"""Time limit while the daemon keeps the spool busy."""

MOST_NAMED = 100
"""Devices in a result, which has room for so many."""


class EraseError(Exception):
    """Not everything that was to be erased was there or could be erased; one line."""


@dataclass(frozen=True)
class Erased:
    """How many jobs, marks of jobs that were given away, blocks of the prefix cache and damaged spools were erased."""

    jobs: int
    marks: int
    given_to: list[str]
    """Devices that have, or may have, such a job, or one that was on its way: at most MOST_NAMED of them."""
    prefix_blocks: int
    damaged_spools: int


def forget(
    id: Annotated[str | None, typer.Argument(help="The job's id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job and result.")] = False,
    config: ConfigOption = None,
) -> None:
    """Erase jobs and results from the spool and its write-ahead log. Works beside a running daemon."""
    if (id is None) == (not everything):
        raise BadUseError("give the id of a job, or --all")
    try:
        erased = erase(settings_or_exit(config), id)
    except EraseError as error:
        end(FAILED, str(error))
    typer.echo(f"erased {_counted(erased)}")
    if erased.given_to:
        what = f"--job {id}" if id is not None else "--all"
        there = f"run edged forget there, or edged fleet command DEVICE forget {what}"
        typer.echo(f"given away to {', '.join(erased.given_to)}, where nothing was erased: {there}")


def _counted(erased: Erased) -> str:
    def some(number: int, one: str, of: str = "") -> str:
        return f"{number} {one}{'' if number == 1 else 's'}{of}"

    parts = [some(erased.jobs, "job")]
    parts += [some(erased.marks, "mark", " of jobs that were given away")] if erased.marks else []
    parts += [some(erased.prefix_blocks, "block", " of the prefix cache")] if erased.prefix_blocks else []
    parts += [some(erased.damaged_spools, "damaged spool")] if erased.damaged_spools else []
    return " and ".join(parts)


def erase(settings: Settings, id: str | None) -> Erased:
    """Erase a job, None: all of them. Raises EraseError."""
    path = settings.state_dir / "spool.db"
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise EraseError(f"there is no spool at {path}: {(error.strerror or str(error)).lower()}") from None
    if os.geteuid() == 0 != owner:
        os.seteuid(owner)  # what SQLite makes beside the spool must stay the daemon's own
    try:
        with contextlib.closing(Spool(path)) as spool:
            with spool.transaction():
                ids = [*spool.ids(), *spool.shared.marked()] if id is None else [id]
                jobs, marks, given_to = _remove(spool, ids)
            until = time.monotonic() + SCRUB_SECONDS
            while not (scrubbed := spool.scrub()) and time.monotonic() < until:
                time.sleep(0.05)
            damaged = spool.set_aside
            for file in damaged:  # which jobs are in them cannot be told
                discard(file)
    except OSError as error:  # SpoolError among them
        raise EraseError(str(error)) from None
    if not (jobs or marks or damaged or id is None):
        raise EraseError(f"no job {id!r} is stored in {path}")
    # Which job's words a prefix holds is not known, so all go: they are only there to save time.
    prefixes = erase_prefixes(settings.state_dir / PREFIXES)
    if not scrubbed:
        hint = "end it, try again"
        raise EraseError(f"erased, but another program reads {path}, so that traces are left beside it: {hint}")
    return Erased(jobs, marks, given_to[:MOST_NAMED], prefixes, len(damaged))


def _remove(spool: Spool, ids: Iterable[str]) -> tuple[int, int, list[str]]:
    """Remove jobs and marks in the caller's transaction: how many of each, and where such jobs went."""
    jobs, marks, given_to = 0, 0, set()
    for id in dict.fromkeys(ids):
        known = spool.find(id)
        if known is not None:
            shared = spool.shared.of(known.number)
            given_to.add(shared.taker if shared is not None else None)
            spool.remove(known.number)
            jobs += 1
        mark = spool.shared.mark_of(id)
        if mark is not None:
            given_to.add(mark.taker)
            spool.shared.unmark(id)
            marks += 1
    return jobs, marks, sorted(taker for taker in given_to if taker is not None)
