"""`edged fleet`: what an operator does for many devices."""

from __future__ import annotations

import typer

from edged.cli.fleet_list import evict, list_devices
from edged.cli.fleet_sign import sign

app = typer.Typer(name="fleet", help="Look at all devices of a broker; sign their models.", no_args_is_help=True)
app.command(name="list")(list_devices)
app.command()(evict)
app.command()(sign)
