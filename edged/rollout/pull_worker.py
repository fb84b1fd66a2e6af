"""Runs in a process of its own and pulls the package of a rollout, with the lowest priority that the kernel has.

The first line on stdin is the order: `{"state_dir", "source", "name", "digest", "rate"}`, the last in bytes per second
or null. When stdin ends, the daemon is gone, and so is this process. Writes JSON documents, one a line, to stdout:
`{"done", "total"}` in bytes now and then, and in the end `{"version"}`, its path below the store, or
`{"failed", "by"}`: the reason, and `network`, `content` or `package`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from edged.engine.package import PackageError
from edged.models.fetch import FetchError, Pace
from edged.models.listing import NAME, RESERVED, SourceError
from edged.models.pull import OtherContentError, PullError, pull_version
from edged.models.sources import open_source
from edged.models.store import StoreError, store_of
from edged.settings import Settings

_TOLD_SECONDS = 1.0


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_daemon, daemon=True).start()
    with contextlib.suppress(OSError):  # the unit forbids it: its exposure counts more, and the pull competes
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # the disk's idle class comes with it
    try:
        said = _pull(order, out)
    except OtherContentError as error:
        said = {"failed": str(error), "by": "content"}
    except PackageError as error:
        said = {"failed": str(error), "by": "package"}
    except (SourceError, PullError, FetchError, StoreError, OSError) as error:
        said = {"failed": str(error), "by": "network"}
    except Exception as error:
        said = {"failed": f"a fault of edged's own: {type(error).__name__}: {error}", "by": "network"}
    print(json.dumps(said), file=out)


def _pull(order: dict[str, Any], out: IO[str]) -> dict[str, Any]:
    settings = Settings(state_dir=Path(order["state_dir"]))
    store = store_of(settings)
    listing = open_source(order["source"])
    name = order["name"] or listing.name
    if not NAME.fullmatch(name) or name in RESERVED:
        raise PackageError(f"{name!r} cannot be a package's name: model.name must be given")
    done, told = 0, 0.0

    def progress(_file: str, count: int) -> None:
        nonlocal done, told
        done += count
        if time.monotonic() - told >= _TOLD_SECONDS:
            told = time.monotonic()
            print(json.dumps({"done": done, "total": listing.bytes}), file=out)

    pace = Pace(order["rate"])
    version = pull_version(listing, name, order["digest"], settings, store, progress, pace)
    return {"version": version.relative_to(store.folder).as_posix()}


def _end_with_the_daemon() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
