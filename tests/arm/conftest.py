"""A Debian 12 for 64-bit Arm with the package for it, whose programs qemu-user emulates on the processor of a board.

binfmt_misc is mounted in a user namespace of its own (Linux 6.7), so that nothing of this machine changes. qemu-user
shows /proc/cpuinfo of the machine it runs on, and an onnxruntime from 1.28 on dies of that while it is imported (no
line of an Arm in it, a null pointer); what the board itself would show is laid over it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".arm-root"
BOARDS = PROJECT / "tests/fixtures/boards"
EMULATOR = "/usr/bin/qemu-aarch64-static"
PACKAGES = "python3,libstdc++6"
PROCESSORS = {"cortex-a72": "pi4", "cortex-a76": "pi5"}
"""With the board that has each."""

# An ELF file, 64 bit, little endian, executable or shared, of machine 183 (binfmt_misc, elf(5)).
_MAGIC = r"\x7fELF\x02\x01\x01\x00" + r"\x00" * 8 + r"\x02\x00\xb7\x00"
_MASK = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
_ENTER = f"""
set -e; root=$1; cpuinfo=$2; shift 2
mount -t binfmt_misc none /mnt
printf '%s' ':aarch64:M::{_MAGIC}:{_MASK}:{EMULATOR}:F' >/mnt/register
mount -t proc none "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
exec chroot "$root" "$@"
"""


class Arm:
    """Runs programs of the Arm system below `root`, on the processor `cpu` of the board `board`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, cpu: str, cpuinfo: Path, *command: str) -> tuple[list[str], dict[str, str]]:
        """What to run, and in which environment."""
        enter = "unshare --user --map-root-user --mount --pid --fork --kill-child sh -c".split()
        environment = {"PATH": "/usr/bin:/usr/sbin", "LANG": "C.UTF-8", "QEMU_CPU": cpu}
        return [*enter, _ENTER, "enter", str(self.root), str(cpuinfo), *command], environment

    def run(self, cpu: str, cpuinfo: Path, *command: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
        arguments, environment = self.command(cpu, cpuinfo, *command)
        return subprocess.run(
            arguments, env=environment, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip


def run(*command: str | Path, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def arm() -> Arm:
    """The Arm system. Debian's packages are unpacked and not set up, which nothing here needs: it takes seconds."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap needs root")
    made = CACHE / ".complete"
    if not made.exists() or made.read_text() != PACKAGES:
        shutil.rmtree(CACHE, ignore_errors=True)
        what = ("--foreign", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", "bookworm")
        run("debootstrap", *what, CACHE)
        for package in sorted((CACHE / "var/cache/apt/archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, CACHE)
            package.unlink()
        made.write_text(PACKAGES)
    (package,) = (PROJECT / "dist").glob("edged_*+py3.11_arm64.deb")
    shutil.rmtree(CACHE / "usr/lib/edged", ignore_errors=True)
    run("dpkg-deb", "-x", package, CACHE)
    shutil.copy(Path(__file__).with_name("answers.py"), CACHE / "usr/lib/edged/answers.py")
    return Arm(CACHE)
