"""Runs edged with a model whose steps take as long as a test says: nothing of this is in the product.

TEST_PACE_FILE names a file that holds the seconds of a step, or `hold` to stop in it until that changes.
"""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path

from edged.engine.engine import Engine

_pace_file = Path(os.environ["TEST_PACE_FILE"])
_step = Engine._step


def _paced_step(self: Engine) -> None:
    while self._rows and (pace := _pace_file.read_text()) != "":
        if pace != "hold":
            time.sleep(float(pace))
            break
        time.sleep(0.002)
    _step(self)


Engine._step = _paced_step  # type: ignore[method-assign]
runpy.run_module("edged", run_name="__main__")
