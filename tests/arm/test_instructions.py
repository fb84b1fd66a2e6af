"""A processor that lacks what the wheels are made for: one line and exit code 78, not SIGILL."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BOARDS, Arm

# Flags of a Core 2 Duo (Conroe), as the kernel names them, as far as they matter here.
CORE2 = "fpu tsc cx8 cmov mmx fxsr sse sse2 ht syscall nx lm constant_tsc pni dtes64 monitor ssse3 cx16 lahf_lm"
_LAID_OVER = 'mount --bind "$0" /proc/cpuinfo && exec "$@"'


def core2(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run this machine's Python on an emulated Core 2 Duo."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {CORE2}\n")
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _LAID_OVER, str(cpuinfo)]
    emulator = ["qemu-x86_64-static", "-cpu", "core2duo", sys.executable]
    return subprocess.run([*enter, *emulator, *command], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="emulates another processor of this machine's kind")
def test_a_pc_without_sse4_is_told(tmp_path: Path) -> None:
    assert core2(tmp_path, "-c", "import onnxruntime").returncode != 0  # what would happen
    done = core2(tmp_path, "-m", "edged", "run", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 78, done.stderr
    assert done.stderr.splitlines() == [
        "edged: this processor lacks popcnt, sse4_1, sse4_2, which numpy and onnxruntime need: "
        "take a board with a newer one"
    ]


def test_an_arm_without_simd_is_told(arm: Arm, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text((BOARDS / "pi4/proc/cpuinfo").read_text().replace(" asimd ", " "))
    done = arm.run("cortex-a53", cpuinfo, "/usr/bin/edged", "run")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "lacks asimd" in done.stderr


def test_a_pi_3_runs_it(arm: Arm) -> None:
    done = arm.run(
        "cortex-a53",
        BOARDS / "pi4/proc/cpuinfo",
        *("/usr/lib/edged/bin/python3", "-I", "-c", "import numpy, onnxruntime, tokenizers, pydantic_core"),
    )
    assert done.returncode == 0, done.stderr
