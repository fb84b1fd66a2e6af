"""Nothing reports to anybody but the operator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_library_leaves_anything_in_the_home_of_its_user(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "edged", "generate", "hello"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "unknown"
    assert "telemetry" not in done.stderr.lower()
    assert sorted(path for path in tmp_path.rglob("*") if "elemetry" in path.name or "icrosoft" in path.name) == []
