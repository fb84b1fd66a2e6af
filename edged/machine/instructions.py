"""Checks for the processor instructions that the wheels of numpy and onnxruntime need, before either is imported.

Without them the import ends the process by SIGILL, with no message. Uses the standard library only.
"""

from __future__ import annotations

import platform
from pathlib import Path

# By machine: the line of /proc/cpuinfo that lists the processor's features, and those that are needed. x86-64-v2 is the
# baseline of numpy's wheels (importing it on a Core 2 ends by SIGILL); onnxruntime runs without AVX (tested on a
# Nehalem). The wheels for 64-bit Arm need ARMv8.0 and detect newer features at run time.
_NEEDED = {
    "x86_64": ("flags", ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")),
    "aarch64": ("Features", ("fp", "asimd")),
}


def features(root: Path = Path("/"), machine: str = "") -> frozenset[str]:
    """Features of the first processor, in the kernel's names; empty if the kernel does not tell."""
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
    """Needed instructions that this processor lacks; empty if the kernel does not tell."""
    has = features(root, machine)
    needed = _NEEDED.get(machine or platform.machine(), ("", ()))[1]
    return [name for name in needed if name not in has] if has else []
