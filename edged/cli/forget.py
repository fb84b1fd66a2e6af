"""`edged forget`: erases a job, or everything stored."""

from __future__ import annotations

import contextlib
import os
import time
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


class EraseError(Exception):
    """Not everything that was to be erased was there or could be erased; one line."""


@dataclass(frozen=True)
class Erased:
    """How many jobs, blocks of the prefix cache and damaged spools were erased."""

    jobs: int
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
    prefixes, damaged = erased.prefix_blocks, erased.damaged_spools
    more = f" and {prefixes} block{'' if prefixes == 1 else 's'} of the prefix cache" if prefixes else ""
    more += f" and {damaged} damaged spool{'' if damaged == 1 else 's'}" if damaged else ""
    typer.echo(f"erased {erased.jobs} job{'' if erased.jobs == 1 else 's'}{more}")


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
            erased = 0
            with spool.transaction():
                for name in spool.ids() if id is None else [id]:
                    known = spool.find(name)
                    if known is not None:
                        spool.remove(known.number)
                        erased += 1
            until = time.monotonic() + SCRUB_SECONDS
            while not (scrubbed := spool.scrub()) and time.monotonic() < until:
                time.sleep(0.05)
            damaged = spool.set_aside
            for file in damaged:  # which jobs are in them cannot be told
                discard(file)
    except OSError as error:  # SpoolError among them
        raise EraseError(str(error)) from None
    if not (erased or damaged or id is None):
        raise EraseError(f"no job {id!r} is stored in {path}")
    # Which job's words a prefix holds is not known, so all go: they are only there to save time.
    prefixes = erase_prefixes(settings.state_dir / PREFIXES)
    if not scrubbed:
        hint = "end it, try again"
        raise EraseError(f"erased, but another program reads {path}, so that traces are left beside it: {hint}")
    return Erased(erased, prefixes, len(damaged))
