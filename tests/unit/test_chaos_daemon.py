"""The daemon of `make chaos` replaces methods of edged by name: each of them is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "chaos"


def test_what_the_chaos_daemon_replaces_is_there() -> None:
    script = (
        "import edged_under_test as under_test\n"
        "under_test._watch_stages()\n"
        "under_test._watch_start_and_drain()\n"
        "under_test._try_again_soon()\n"
        "[sabotage() for sabotage in under_test.SABOTAGES.values()]\n"
    )
    env = {**os.environ, "CHAOS_KILL": "never:1:0", "PYTHONPATH": f"{FOLDER}:{FOLDER.parents[1]}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
