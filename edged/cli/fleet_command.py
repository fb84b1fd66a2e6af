"""`edged fleet command`: sends a command to a device or a group, and waits for what each device answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
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
from edged.cli.fleet_sign import private_key
from edged.commands.document import NAMES, RefusedError, check_command
from edged.commands.signing import sign
from edged.fleet.asking import Answers
from edged.fleet.boards import Boards
from edged.fleet.gather import BrokerError, Gathering
from edged.fleet.summary import Filter, summaries
from edged.machine.clock import format_time
from edged.mqtt.session_types import Subscription
from edged.mqtt.topics import ID_ALLOWED, Topics, is_id
from edged.settings.mqtt import MqttSettings

_LOOK_SECONDS = 0.2


def send_command(
    words: Annotated[list[str], typer.Argument(metavar="[DEVICE] COMMAND", help="The device, and what it is to do.")],
    group: Annotated[str | None, typer.Option("--group", help="In place of a device: every one of this group.")] = None,
    lines: Annotated[int | None, typer.Option(help="logs: how many lines.")] = None,
    level: Annotated[str | None, typer.Option(help="logs: the lowest level.")] = None,
    job: Annotated[str | None, typer.Option(help="forget: the job's id.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="forget: every job and result.")] = False,
    rows: Annotated[int | None, typer.Option(help="bench: jobs at the same time.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="PEM file of a key of fleet.trusted_keys.")] = None,
    timeout: Annotated[float, typer.Option(min=1.0, max=86400.0, help="Seconds to wait for answers.")] = 120.0,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Let a device or a group do something: restart, reload, bench, doctor, logs or forget.

    Exit code 1 where a device failed or refused, 69 where one did not answer or the broker does not take it.
    """
    device, name = _target(words, group)
    private = None if key is None else private_key(key)
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    id, root = uuid.uuid4().hex[:16], settings.mqtt.root
    topics = Topics(root, device or "")
    topic = topics.group_command(group, name, id) if group is not None else topics.command(name, id)
    asked = {"lines": lines, "level": level, "job": job, "all": all_ or None, "rows": rows}
    document: dict[str, Any] = {"status": "init", "expires": format_time(time.time() + timeout)}
    document |= {field: value for field, value in asked.items() if value is not None}
    try:
        read = check_command(name, id, document)  # type: ignore[arg-type]  # one of NAMES
    except RefusedError as error:
        raise BadUseError(str(error)) from None
    if private is not None:
        document["signature"] = sign(read, topic, private)
    try:
        heard, silent = _ask(settings.mqtt, topic, document, f"{name}/{id}", device, group, timeout)
    except BrokerError as error:
        end(NOBODY, str(error))
    failed = [one for one, answer in heard.items() if answer["status"] != "successful"]
    if json_:
        told = {"command": name, "id": id, "answers": heard, "silent": sorted(silent)}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        _show(heard)
        for one in sorted(silent):
            typer.echo(f"edged: {one} did not answer within {timeout:.0f} s", err=True)
    raise typer.Exit(NOBODY if silent else FAILED if failed else DONE)


def _target(words: list[str], group: str | None) -> tuple[str | None, str]:
    """The device, None with --group, and the command. Raises BadUseError."""
    if len(words) != (2 if group is None else 1):
        raise BadUseError("give a device and a command, or --group and a command")
    device, name = (None if group is not None else words[0]), words[-1]
    for what, id in (("the device", device), ("--group", group)):
        if id is not None and not is_id(id):
            raise BadUseError(f"{what} {id!r} must be {ID_ALLOWED}")
    if name not in NAMES:
        raise BadUseError(f"there is no command {name!r}: commands are {', '.join(NAMES)}")
    return device, name


def _ask(
    mqtt: MqttSettings,
    topic: str,
    document: Mapping[str, Any],
    command: str,
    device: str | None,
    group: str | None,
    timeout: float,
) -> tuple[dict[str, Mapping[str, Any]], Collection[str]]:
    """Publish the document; the answers, and who owes one. Then nothing of it is retained. Raises BrokerError."""
    boards = Boards(mqtt.root)
    answers = Answers(boards, mqtt.root, command)
    own = Subscription(Topics(mqtt.root, "+").command(*command.split("/")), 1, "answers", retained=True, required=True)
    with Gathering(mqtt, answers, more=[own]) as gathering:
        gathering.gather()
        members = summaries(boards.all(), time.time(), Filter(group=group))
        expected = [device] if device is not None else [one.device for one in members if not one.away]
        if not expected:
            raise BrokerError(f"no device of the group {group} is there: edged fleet list shows which are")
        gathering.keep(topic, json.dumps(document).encode())
        until = time.monotonic() + timeout
        while not answers.ended(expected) and time.monotonic() < until:
            gathering.listen(_LOOK_SECONDS)
        heard = answers.all()
        done = {one: answer for one, answer in heard.items() if answers.ended([one])}
        silent = [one for one in expected if one not in done]
        gathering.clear([topic, *(Topics(mqtt.root, one).command(*command.split("/")) for one in heard)])
        return done, silent


def _show(heard: Mapping[str, Mapping[str, Any]]) -> None:
    """Each device's answer on a line, with its result below."""
    for device, answer in heard.items():
        if answer["status"] != "successful":
            hint = f"; {answer['hint']}" if answer.get("hint") else ""
            typer.echo(_printable(f"{device}: failed: {answer.get('reason')} ({answer.get('code')}){hint}"))
            continue
        typer.echo(f"{device}: successful")
        result = answer.get("result")
        for name, value in result.items() if isinstance(result, dict) else ():
            for line in value if isinstance(value, list) else [{name: value}]:
                typer.echo(_printable(f"  {json.dumps(line, ensure_ascii=False)}"))


def _printable(text: str) -> str:
    """A device's words without what a terminal would take for orders."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
