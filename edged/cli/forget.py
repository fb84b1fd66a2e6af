"""`edged forget`: erases a job, or everything stored."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Annotated

import typer

from edged.cli.common import FAILED, BadUseError, ConfigOption, end, settings_or_exit
from edged.engine.prefix_files import PREFIXES, erase
from edged.jobs.spool import Spool, discard

SCRUB_SECONDS = 15.0
"""Time limit while the daemon keeps the spool busy."""


def forget(
    id: Annotated[str | None, typer.Argument(help="The job's id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job and result.")] = False,
    config: ConfigOption = None,
) -> None:
    """Erase jobs and results from the spool and its write-ahead log. Works beside a running daemon."""
    if (id is None) == (not everything):
        raise BadUseError("give the id of a job, or --all")
    settings = settings_or_exit(config)
    path = settings.state_dir / "spool.db"
    try:
        owner = path.stat().st_uid
    except OSError as error:
        end(FAILED, f"there is no spool at {path}: {(error.strerror or str(error)).lower()}")
    if os.geteuid() == 0 != owner:
        os.seteuid(owner)  # what SQLite makes beside the spool must stay the daemon's own
    try:
        with contextlib.closing(Spool(path)) as spool:
            ids = spool.ids() if everything else [id or ""]
            erased = 0
            with spool.transaction():
                for name in ids:
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
        end(FAILED, str(error))
    if not (erased or damaged or everything):
        end(FAILED, f"no job {id!r} is stored in {path}")
    # Which job's words a prefix holds is not known, so all go: they are only there to save time.
    prefixes = erase(settings.state_dir / PREFIXES)
    more = f" and {prefixes} block{'' if prefixes == 1 else 's'} of the prefix cache" if prefixes else ""
    more += f" and {len(damaged)} damaged spool{'' if len(damaged) == 1 else 's'}" if damaged else ""
    if not scrubbed:
        end(FAILED, f"erased, but another program reads {path}, so that traces are left beside it: end it, try again")
    typer.echo(f"erased {erased} job{'' if erased == 1 else 's'}{more}")
