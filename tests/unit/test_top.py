"""What `edged top` draws."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from invented import board
from rich.console import Console

from edged.cli.top import picture, sparkline


def drawn(document: dict[str, Any], width: int = 100) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(picture(document, width))
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_a_sparkline_shows_the_highest_of_each_group_and_what_is_not_known() -> None:
    assert sparkline([0, 1, 2, 4, None, 8], 8, 6) == " ▁▂▄·█"
    assert sparkline([0, 8, 0, 0, None, None], 8, 3) == "█ ·"
    assert sparkline([9, -1], 8, 10) == "█ "


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for well in (True, False):
        assert max(map(len, drawn(board(well), width).splitlines())) <= width


def test_it_says_what_the_page_says() -> None:
    text = drawn(board(), 120)
    for part in ("pi-hall-3", "Ready: jobs are answered.", "running 4 of 4", "shift-report-1207", "failed: internal"):
        assert part in text
    text = " ".join(drawn(board(well=False), 200).split())
    for part in ("Not ready", "What to do: check that the broker runs", "under voltage", "board_throttled, 9 min ago"):
        assert part in text


def test_no_text_steers_the_terminal() -> None:
    document = board(well=False)
    document["faults"][0]["message"] = document["jobs"][0]["id"] = "\x1b]0;title\x07\x1b[2J[bold]x"
    text = drawn(document)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]x" in text
