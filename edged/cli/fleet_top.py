"""`edged top --fleet`: all devices of a broker in the terminal, live, those in trouble first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edged.cli.common import NOBODY, end
from edged.cli.fleet_table import COLUMNS, RIGHT, cells, lines
from edged.fleet.boards import Boards
from edged.fleet.gather import BrokerError, Gathering
from edged.fleet.summary import Summary, summaries
from edged.report.words import figure
from edged.settings.mqtt import MqttSettings

EVERY = 2.0
"""Seconds between two looks."""
_STYLES = ("red", "red", "yellow", "yellow", "")
"""By Summary.trouble."""
_AROUND = 4
"""Lines above and below the devices."""
_WIDE = {"device": 16, "why": 24, "model": 24}
"""The most characters of long columns where there is little room."""
_LEFT_OUT = {120: {"digest", "edged", "runs"}, 80: {"tok/s", "W", "model"}, 60: {"queue", "°C"}}
"""Columns that are left out on terminals narrower than this."""


def top_fleet(mqtt: MqttSettings, console: Console) -> None:
    """Show all devices until Ctrl-C, or print them once where there is no terminal. Exits 69 without a broker."""
    boards = Boards(mqtt.root)
    try:
        with Gathering(mqtt, boards) as gathering:
            gathering.gather()
            if not console.is_terminal:
                found = summaries(boards.all(), time.time())
                console.out("\n".join((headline(found), "", *lines(found, time.time()))))
                return
            with Live(console=console, screen=True, auto_refresh=False) as live:
                for shown in _follow(boards, console):
                    live.update(shown, refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit from None
    except BrokerError as error:
        end(NOBODY, str(error))


def _follow(boards: Boards, console: Console) -> Iterator[RenderableType]:
    """A new picture every two seconds; the last one with a line above it while the broker does not deliver."""
    found: list[Summary] = []
    while True:
        lost = not boards.connected
        if not lost:
            found = summaries(boards.all(), time.time())
        width, height = console.size
        shown: RenderableType = picture(found, time.time(), width, height - lost)
        if lost:
            shown = Group(Text("The broker does not deliver. Below is how it was.", style="bold red"), shown)
        yield shown
        time.sleep(EVERY)


def picture(found: Sequence[Summary], now: float, width: int, height: int) -> Group:
    """The devices for a terminal of this size: as many as there is room for, and how many are left out."""
    room = max(1, height - _AROUND)
    shown = found[:room]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
    left_out = {name for least, names in _LEFT_OUT.items() if width < least for name in names}
    columns = [(at, name) for at, name in enumerate(COLUMNS) if name not in left_out]
    for _, name in columns:
        wide = _WIDE.get(name)
        table.add_column(
            name,
            justify="right" if name in RIGHT else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=None if wide is None or width >= 160 else wide,
        )
    for one in shown:
        texts = cells(one, now)
        table.add_row(*(Text(texts[at]) for at, _ in columns), style=_STYLES[one.trouble])
    rest = found[room:]
    note = f"… and {len(rest)} more, of which {sum(one.trouble < 3 for one in rest)} are in trouble" if rest else ""
    head, foot = (Text(text, no_wrap=True, overflow="ellipsis") for text in (headline(found), note))
    head.stylize("bold")
    return Group(head, Text(), table, foot)


def headline(found: Sequence[Summary]) -> str:
    """How many there are of each kind, and what they do together."""
    kinds = Counter("ready" if one.ready else "not ready" if one.state == "online" else one.state for one in found)
    counts = [
        f"{kinds[kind]} {kind}" for kind in ("not ready", "silent", "unknown", "offline", "draining") if kinds[kind]
    ]
    sums = (
        ("waiting", [one.queued for one in found], ""),
        ("running", [one.running for one in found], ""),
        ("drawing", [one.power_watts for one in found], " W"),
    )
    told = [
        f"{name} {figure(sum(known))}{unit}"
        for name, values, unit in sums
        if (known := [v for v in values if v is not None])
    ]
    return " · ".join((f"{len(found)} devices: {kinds['ready']} ready", *counts, *told))
