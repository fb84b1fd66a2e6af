"""Adds the logs of daemons and brokers to the report of a test that failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MOST_CHARACTERS = 20_000
_open: dict[Path, str] = {}
_closed: list[tuple[str, str]] = []


def show_on_failure(path: Path, title: str) -> None:
    """Show the end of this file in each report of a failure, until forget()."""
    _open[path] = title


def forget(path: Path) -> None:
    """Call this before the file goes. It still shows if the current test fails."""
    title = _open.pop(path, None)
    if title is not None:
        _closed.append((title, _end_of(path)))


def _end_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-MOST_CHARACTERS:]
    except OSError as error:
        return str(error)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.failed:
        report.sections += [*((title, _end_of(path)) for path, title in _open.items()), *_closed]
    if call.when == "teardown":
        _closed.clear()
    return report
