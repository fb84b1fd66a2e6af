"""`edged fleet`: what an operator does for many devices."""

from __future__ import annotations

import typer

from edged.cli.fleet_command import send_command
from edged.cli.fleet_list import evict, list_devices
from edged.cli.fleet_rollout import rollout
from edged.cli.fleet_sign import sign
from edged.cli.fleet_wave import abort, history, pause, resume, status

app = typer.Typer(name="fleet", help="Look at all devices of a broker; roll out models.", no_args_is_help=True)
app.command(name="list")(list_devices)
app.command(name="command")(send_command)
for command in (evict, sign, rollout, status, pause, resume, abort, history):
    app.command()(command)
