"""What the benchmarks of the engine share: a line of the table, and the page cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of the table; `met` is None where there is no goal, or nothing to measure yet."""

    name: str
    value: str
    goal: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.met is None else "met" if self.met else "MISSED"
        return f"  {self.name:<58} {self.value:<48} {self.goal:<8} {verdict}".rstrip()


def show(figures: Iterable[Figure]) -> None:
    """Print each as soon as it is there."""
    for figure in figures:
        print(figure, flush=True)


def forget_pages(folder: Path) -> int:
    """Drop the files below a folder from the page cache; returns their bytes."""
    size = 0
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)  # what is not on disk yet cannot be dropped
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            size += os.fstat(file).st_size
            os.close(file)
    return size


def gib(number: float) -> str:
    return f"{number / 2**30:.2f} GiB"
