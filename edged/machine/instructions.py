"""Instructions that numpy's and onnxruntime's wheels are compiled for, looked for before either is imported.

Where one lacks, the import ends the process by SIGILL, and nobody learns why. Kept to the standard library.
"""

from __future__ import annotations

import platform
from pathlib import Path

# By machine: the line of /proc/cpuinfo that lists what the processor has, and which of it is needed. x86-64-v2 is the
# baseline of numpy's wheels (its import on a Core 2 ends by SIGILL); onnxruntime goes without AVX (tried on a Nehalem).
# The wheels for 64-bit Arm are made for ARMv8.0; what newer processors have is looked for while running.
_NEEDED = {
    "x86_64": ("flags", ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")),
    "aarch64": ("Features", ("fp", "asimd")),
}


def features(root: Path = Path("/"), machine: str = "") -> frozenset[str]:
    """What the first processor has, in the kernel's names; empty where the kernel does not say."""
    line = _NEEDED.get(machine or platform.machine(), ("", ()))[0]
    try:
        text = (root / "proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return frozenset()
    for found in text.splitlines():
        name, _, value = found.partition(":")
        if name.strip() == line:
            return frozenset(value.split())
    return frozenset()


def missing(root: Path = Path("/"), machine: str = "") -> list[str]:
    """Needed instructions that this processor lacks; none where the kernel does not say what it has."""
    has = features(root, machine)
    needed = _NEEDED.get(machine or platform.machine(), ("", ()))[1]
    return [name for name in needed if name not in has] if has else []
