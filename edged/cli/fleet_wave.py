"""`edged fleet status`, `pause`, `resume`, `abort` and `history`: a group's rollout, seen and steered by a person."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from edged.cli.common import (
    DONE,
    FAILED,
    NOBODY,
    UNFINISHED,
    ConfigOption,
    HostOption,
    JsonOption,
    PortOption,
    broker_settings_or_exit,
    end,
)
from edged.cli.fleet_rollout import Fleet, GroupOption, KeyOption
from edged.cli.fleet_rollout_table import as_json, headline, line, not_heeded, rows
from edged.fleet.gather import BrokerError, Gathering
from edged.rollout.conductor import Decision, Verdict, Wave
from edged.rollout.conductor_documents import Heard
from edged.rollout.conductor_history import history_of
from edged.rollout.conductor_run import CannotBeginError, Picture, aborted, change, choose, paused, resumed
from edged.settings import Settings


def status(
    group: GroupOption,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the group's rollout, device by device.

    Exit code 0 where every device that is there has executed it, 75 where it goes on or is paused, 1 where it was
    aborted or there is none, 69 where the broker does not tell.
    """
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    with _gathered(Fleet(settings, group, None)) as (_, heard):
        picture = _picture(heard)
    if json_:
        typer.echo(json.dumps(as_json(picture), ensure_ascii=False, indent=2))
    else:
        typer.echo("\n".join((headline(picture), line(picture), *rows(picture))))
    codes = {Verdict.SUCCEEDED: DONE, Verdict.ABORTED: FAILED}
    raise typer.Exit(codes.get(picture.decision.verdict, UNFINISHED))


def pause(
    group: GroupOption,
    key: KeyOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
) -> None:
    """Let no further device join the group's rollout; those that take part go on."""
    _steer(broker_settings_or_exit(config, mqtt_host, mqtt_port), group, key, paused)


def resume(
    group: GroupOption,
    key: KeyOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
) -> None:
    """Let the group's rollout go on after a pause, by the `edged fleet rollout` that runs or is started."""
    _steer(broker_settings_or_exit(config, mqtt_host, mqtt_port), group, key, resumed)


def abort(
    group: GroupOption,
    key: KeyOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
) -> None:
    """End the group's rollout for good on each device that has not finished it."""
    _steer(broker_settings_or_exit(config, mqtt_host, mqtt_port), group, key, aborted)


def history(
    group: GroupOption,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """List the rollouts that the group's document and the devices' reports tell of, the latest first.

    A device reports its last one only. Exit code 1 where there is none.
    """
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    with _gathered(Fleet(settings, group, None)) as (_, heard):
        found = history_of(heard.newest, heard.reports(), heard.target)
    if json_:
        typer.echo(json.dumps([one.as_json() for one in found], ensure_ascii=False, indent=2))
    else:
        for one in found:
            typer.echo(one.line())
    raise typer.Exit(DONE if found else FAILED)


@contextmanager
def _gathered(fleet: Fleet) -> Iterator[tuple[Gathering, Heard]]:
    """A connection that has gathered; ends the command with one line where something is wrong."""
    try:
        with fleet.connect() as (gathering, heard):
            gathering.gather()
            yield gathering, heard
    except BrokerError as error:
        end(NOBODY, str(error))
    except CannotBeginError as error:
        end(FAILED, str(error))


def _steer(settings: Settings, group: str, key: KeyOption, alter: Callable[[Wave], Wave]) -> None:
    fleet = Fleet(settings, group, key)
    with _gathered(fleet) as (gathering, heard):
        change(gathering, heard, alter, fleet.sign)
        picture = _picture(heard)
    typer.echo(headline(picture))
    typer.echo(line(picture))


def _picture(heard: Heard) -> Picture:
    """The rollout as it is. How far its waves go, only its conductor knows: here it is over when all have executed."""
    received = choose(heard, None)
    members = tuple(heard.members(received, time.time()))
    wave = heard.wave()
    there = [member for member in members if member.counts]
    done = wave.percent >= 100.0 and there and all(member.executed for member in there)
    if wave.abort:
        verdict = Verdict.ABORTED
    elif done:
        verdict = Verdict.SUCCEEDED
    else:
        verdict = Verdict.PAUSED if wave.paused else Verdict.IN_PROGRESS
    picture = Picture(received, Decision(verdict, wave), members, heard.refused)
    if (told := not_heeded(picture)) is not None:
        typer.echo(f"edged: {told}", err=True)
    return picture
