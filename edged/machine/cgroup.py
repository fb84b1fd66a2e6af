"""Finds the control groups of this process, whose limits apply in addition to the board's own (cgroups(7))."""

from __future__ import annotations

from pathlib import Path


def folders(root: Path = Path("/")) -> list[Path]:
    """This process's cgroup v2 folder and its parents, the innermost first; empty without cgroup v2."""
    for mount in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
        if (mount / "cgroup.controllers").exists():
            return _upwards(mount, _path(root, controller=""))
    return []


def memory_v1_folders(root: Path = Path("/")) -> list[Path]:
    """The same for the memory controller of cgroup v1."""
    mount = root / "sys/fs/cgroup/memory"
    return _upwards(mount, _path(root, "memory")) if mount.is_dir() else []


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that cpu.max allows, the smallest over all groups; None without a limit."""
    quotas = []
    for folder in folders(root):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
    return min(quotas, default=None)


def _path(root: Path, controller: str) -> str:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return "/"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _upwards(mount: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # outside our cgroup namespace: only the mounted groups can be read
        parts = []
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
