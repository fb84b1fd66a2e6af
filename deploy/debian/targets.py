"""What packages are made for: a distribution's Python, C library and systemd, and a processor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SYSTEMS = {
    "3.10": ("Ubuntu 22.04", 35, 249),
    "3.11": ("Debian 12", 36, 252),
    "3.12": ("Ubuntu 24.04", 39, 255),
    "3.13": ("Debian 13", 41, 257),
}
"""By the version of python3: who has it, and with which glibc 2.x and systemd."""
OLDEST_GLIBC = 17
"""What manylinux2014 stands for."""


@dataclass(frozen=True)
class Target:
    """`python` is a version such as 3.11, `arch` Debian's name of a processor."""

    python: str
    arch: str

    @property
    def system(self) -> str:
        """The distribution whose python3 this is."""
        return SYSTEMS[self.python][0]

    @property
    def glibc(self) -> int:
        """The x of that distribution's glibc 2.x."""
        return SYSTEMS[self.python][1]

    @property
    def systemd(self) -> int:
        """The version of that distribution's systemd."""
        return SYSTEMS[self.python][2]

    @property
    def lock(self) -> Path:
        """The wheels, pinned by hash."""
        return HERE / f"wheels/python{self.python}-{self.arch}.txt"

    @property
    def pip_options(self) -> list[str]:
        """What makes pip choose for this target and not for the machine it runs on; no compiler, no resolving."""
        options = ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}"]
        options += ["--ignore-requires-python"]  # pip would hold it against the Python it runs on; uv has looked
        machine = MACHINES[self.arch]
        options += [f"--platform=manylinux_2_{minor}_{machine}" for minor in range(self.glibc, OLDEST_GLIBC - 1, -1)]
        return [*options, f"--platform=manylinux2014_{machine}"]


TARGETS = [Target(python, arch) for python in sorted(SYSTEMS, key=lambda v: int(v[2:])) for arch in MACHINES]


def target_of(python: str, arch: str) -> Target:
    """The target for a python such as ``python3.11`` or ``3.11``. Raises ValueError, one line."""
    found = re.search(r"(3\.\d+)$", python)
    if not found or found[1] not in SYSTEMS:
        raise ValueError(f"PYTHON={python}: must end in one of {', '.join(SYSTEMS)}")
    if arch not in MACHINES:
        raise ValueError(f"ARCH={arch}: must be one of {', '.join(MACHINES)}")
    return Target(found[1], arch)
