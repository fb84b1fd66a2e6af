"""For every Python that boards have, all that edged needs comes as a wheel for 64-bit Arm: no compiler anywhere."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, Arm

sys.path.insert(0, str(PROJECT / "deploy/debian"))

from targets import TARGETS, Target


def alignments(library: Path) -> set[int]:
    """To what the loadable segments of a 64-bit ELF file are aligned, in bytes (elf(5))."""
    data = library.read_bytes()
    offset, size, number = struct.unpack_from("<32xQ14xHH", data)
    headers = [struct.unpack_from("<I44xQ", data, offset + index * size) for index in range(number)]
    return {alignment for kind, alignment in headers if kind == 1}


def test_every_library_loads_on_a_kernel_with_larger_pages(arm: Arm) -> None:
    """A Pi 5's own kernel has pages of 16 KiB; 64 KiB is the most that there is. jemalloc is bound to one size."""
    libraries = [*(arm.root / "usr/lib/edged").rglob("*.so*")]
    assert len(libraries) > 10
    assert {library.name: alignments(library) for library in libraries if min(alignments(library)) < 1 << 16} == {}
    assert [library.name for library in libraries if b"jemalloc" in library.read_bytes()] == []
    print(f"{len(libraries)} native libraries, all for pages of up to 64 KiB, none with jemalloc")


@pytest.mark.parametrize("target", [target for target in TARGETS if target.arch == "arm64"], ids=str)
def test_every_dependency_is_a_wheel(target: Target, tmp_path: Path) -> None:
    report = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--require-hashes"),
            *("-d", tmp_path, "-r", target.lock, *target.pip_options),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert report.returncode == 0, report.stderr[-2000:]
    wheels = sorted(tmp_path.iterdir(), key=lambda wheel: -wheel.stat().st_size)
    assert {wheel.suffix for wheel in wheels} == {".whl"}
    assert all(re.search(r"aarch64|-none-any", wheel.name) for wheel in wheels)
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"Python {target.python} ({target.system}): {len(wheels)} wheels, {size / 1e6:.1f} MB")
    for wheel in wheels:
        if "aarch64" in wheel.name:
            print(f"  {wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
