"""Progress on standard error: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from edged.machine.memory import size

_QUIET_SECONDS = 30.0
"""Longest time without a line where there is no terminal."""


@contextmanager
def progress(total: int, silent: bool) -> Iterator[Callable[[str, int], None]]:
    """A function to call with the name of a file and the number of its bytes just done; `total`: bytes of all files."""
    console = Console(stderr=True, highlight=False)
    if silent:
        yield lambda _name, _count: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda name, count: bar.update(task, advance=count, description=Text(name).plain)
    else:
        yield _Lines(total, console).advance


class _Lines:
    def __init__(self, total: int, console: Console) -> None:
        self._total, self._console = max(1, total), console
        self._done = self._tenths = 0
        self._said = time.monotonic()

    def advance(self, name: str, count: int) -> None:
        self._done += count
        tenths, now = 10 * self._done // self._total, time.monotonic()
        if tenths > self._tenths or now - self._said > _QUIET_SECONDS:
            self._tenths, self._said = tenths, now
            share = f"{100 * self._done // self._total:3} %"
            line = Text(f"{share}  {size(self._done)} of {size(self._total)}  {name}")
            self._console.print(line, soft_wrap=True)
