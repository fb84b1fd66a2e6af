"""What `edged top --fleet` shows of a hall, as a picture."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

from hall import ROOT, Hall
from rich.console import Console
from rich.terminal_theme import MONOKAI

from edged.cli.fleet_top import picture
from edged.fleet.boards import Boards
from edged.fleet.gather import Gathering
from edged.fleet.summary import summaries
from edged.settings.mqtt import MqttSettings

WIDTH = 132
"""Columns of the terminal."""


def record(hall: Hall, file: Path) -> None:
    """Write what it shows now as SVG, with the account of an operator."""
    keys = {name: str(path) for name, path in hall.broker.files("operator", "ops").items()}
    mqtt, boards = MqttSettings(host="127.0.0.1", port=hall.broker.port, tls=True, **keys), Boards(ROOT)
    with Gathering(mqtt, boards) as gathering:
        gathering.gather()
        now = time.time()
        console = Console(record=True, width=WIDTH, height=len(hall.names) + 6, file=io.StringIO(), force_terminal=True)
        console.print(picture(summaries(boards.all(), now), now, *console.size))
    drawn = console.export_svg(title="edged top --fleet", theme=MONOKAI)
    # A page of documentation loads nothing from elsewhere.
    file.write_text(
        re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    )
