"""Runs edged with a spool that syncs too little (POWER_SABOTAGE: OFF, NORMAL), to see that the replay finds it."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

from edged.jobs.spool import Spool

_init = Spool.__init__


def _init_unsynced(self: Spool, *arguments: Any) -> None:
    _init(self, *arguments)
    self._db.execute(f"PRAGMA synchronous={os.environ['POWER_SABOTAGE']}")


Spool.__init__ = _init_unsynced  # type: ignore[method-assign]
runpy.run_path(str(Path(__file__).parents[1] / "broker/paced_edged.py"), run_name="__main__")
