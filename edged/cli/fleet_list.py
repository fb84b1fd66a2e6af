"""`edged fleet list` and `edged fleet evict`: look at all devices of a broker."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from edged.cli.common import (
    DONE,
    FAILED,
    NOBODY,
    BadUseError,
    ConfigOption,
    HostOption,
    JsonOption,
    PortOption,
    broker_settings_or_exit,
    end,
)
from edged.cli.fleet_table import lines
from edged.fleet.boards import STALE_SECONDS, Boards
from edged.fleet.gather import BrokerError, Gathering
from edged.fleet.summary import Filter, Summary, summaries, summary
from edged.machine.clock import format_time
from edged.mqtt.topics import ID_ALLOWED, Topics, is_id

GroupOption = Annotated[str | None, typer.Option("--group", help="Only devices of this group.")]
ModelNameOption = Annotated[str | None, typer.Option("--model", help="Only devices with this model.")]
StaleOption = Annotated[
    float, typer.Option("--stale", min=1.0, max=86400.0, help="Seconds without a word after which one is silent.")
]


def list_devices(
    group: GroupOption = None,
    model: ModelNameOption = None,
    not_ready: Annotated[bool, typer.Option("--not-ready", help="Only devices that answer no job now.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Only devices that are not there.")] = False,
    stale: StaleOption = STALE_SECONDS,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List all devices, those in trouble first. Exit code 1 where none matches, 69 where the broker does not tell."""
    if group is not None and not is_id(group):
        raise BadUseError(f"--group {group!r} must be {ID_ALLOWED}")
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    boards = Boards(settings.mqtt.root, stale=stale)
    try:
        with Gathering(settings.mqtt, boards) as gathering:
            gathering.gather()
            now = time.time()
            found = summaries(boards.all(), now, Filter(group, model, not_ready, offline), stale)
    except BrokerError as error:
        end(NOBODY, str(error))
    if boards.refused:
        typer.echo(f"edged: {boards.refused} messages were no document of a device, or of one too many", err=True)
    if json_:
        document = {"time": format_time(now), "devices": [as_json(one) for one in found]}
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        typer.echo("\n".join(lines(found, now)))
    raise typer.Exit(DONE if found else FAILED)


def evict(
    device: Annotated[str, typer.Argument(help="The device's id.")],
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
) -> None:
    """Take from the broker what it retains of a device that is gone. Exit code 1 where there is nothing."""
    if not is_id(device):
        raise BadUseError(f"{device!r} must be {ID_ALLOWED}")
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    topics, boards = Topics(settings.mqtt.root, device), Boards(settings.mqtt.root)
    try:
        with Gathering(settings.mqtt, boards) as gathering:
            gathering.gather()
            board = boards.all().get(device)
            gathering.clear([topics.status, topics.info, topics.health, topics.reported, topics.bridge])
            place = gathering.broker
    except BrokerError as error:
        end(NOBODY, str(error))
    if board is None:
        end(FAILED, f"{place} retains no document of {device}: edged fleet list shows which devices there are")
    typer.echo(f"cleared at {place}: {', '.join(sorted(board.documents))} of {device}")
    if not summary(device, board, time.time()).away:
        typer.echo(f"{device} is there, and shows itself again until its account is revoked")
    typer.echo(f"to revoke its account: provision.py revoke {device}, which also ends its sessions at the broker")


def as_json(one: Summary) -> dict[str, Any]:
    """A device as `--json` prints it."""
    return {**asdict(one), "heard": None if one.heard is None else format_time(one.heard)}
