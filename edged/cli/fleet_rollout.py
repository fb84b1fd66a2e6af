"""`edged fleet rollout`: brings a model or settings to the devices of a group, wave by wave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from edged.cli.common import (
    DONE,
    FAILED,
    NOBODY,
    UNFINISHED,
    BadUseError,
    ConfigOption,
    HostOption,
    JsonOption,
    PortOption,
    broker_settings_or_exit,
    end,
)
from edged.cli.fleet_rollout_table import as_json, faults, headline, line, not_heeded
from edged.cli.fleet_sign import private_key
from edged.cli.fleet_wanted import wanted_document
from edged.fleet.boards import Boards
from edged.fleet.gather import BrokerError, Gathering
from edged.mqtt.topics import ID_ALLOWED, Topics, is_id
from edged.rollout.conductor import Options, Verdict
from edged.rollout.conductor_documents import Heard
from edged.rollout.conductor_run import CannotBeginError, Conductor, Picture, is_signed
from edged.rollout.desired import Received, RefusedError
from edged.rollout.signing import Part, check_wave, public_key, signed_document
from edged.settings import Settings

GroupOption = Annotated[str, typer.Option("--group", help="The group of the devices.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", help="PEM file of the key to sign with; none where devices have fleet.unsigned."),
]
_DEFAULT = Options()


class Fleet:
    """The group's rollouts at the broker of the settings."""

    def __init__(self, settings: Settings, group: str, key: Path | None) -> None:
        """Raises BadUseError."""
        if not is_id(group):
            raise BadUseError(f"--group {group!r} must be {ID_ALLOWED}")
        self.group = group
        self._mqtt = settings.mqtt
        self._topic = Topics(settings.mqtt.root, "").group_desired(group)
        self._key = None if key is None else private_key(key)
        own = [] if self._key is None else [public_key(self._key)]
        self._keys = [*own, *settings.fleet.trusted_keys, *settings.fleet.conductor_keys]

    @contextmanager
    def connect(self) -> Iterator[tuple[Gathering, Heard]]:
        """A connection that has not gathered yet."""
        boards = Boards(self._mqtt.root)
        heard = Heard(boards, self._mqtt.root, self.group, self._check, bool(self._keys))
        with Gathering(self._mqtt, heard, more=heard.subscriptions()) as gathering:
            yield gathering, heard

    def sign(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Sign the wave, and the release where nobody has. Raises BadUseError without the key for it."""
        if self._key is None:
            if is_signed(document) or self._keys:
                raise BadUseError("the documents of this group are signed: give --key, the conductor's key")
            return document
        parts: tuple[Part, ...] = ("wave",) if "signature" in document else ("wave", "release")
        return signed_document(document, f"group/{self.group}", self._topic, self._key, parts)

    def _check(self, received: Received) -> None:
        if self._keys:
            check_wave(received, self._topic, self._keys)


def rollout(
    group: GroupOption,
    model: Annotated[str | None, typer.Option("--model", help="Its source, as edged model pull takes it.")] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="Its manifest's identity; else from the source's SHA-256 sums.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What jobs call it; else as at its source.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting; all that rollouts set before are taken back."),
    ] = None,
    rollout: Annotated[
        str | None, typer.Option("--rollout", help="The rollout's id; else made of the digest and the settings.")
    ] = None,
    expires: Annotated[str | None, typer.Option("--expires", help="When no device begins any more (RFC 3339).")] = None,
    document: Annotated[
        Path | None,
        typer.Option("--document", help="A desired document in place of these, as edged fleet sign prints it."),
    ] = None,
    key: KeyOption = None,
    waves: Annotated[str, typer.Option("--waves", help="Percent of the devices, each wave larger.")] = "5,25,100",
    abort_over: Annotated[
        float, typer.Option("--abort-over", min=0, max=100, help="Percent of failures above which it is aborted.")
    ] = _DEFAULT.abort_over,
    min_executed: Annotated[
        int, typer.Option("--min-executed", min=1, help="Devices that a wave holds, and that executed before an abort.")
    ] = _DEFAULT.min_executed,
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="Most devices that join within a minute; else no limit.")
    ] = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Roll out a model, settings or both, or go on with the group's rollout where none of them is given.

    Exit code 0 when the last wave has proved itself, 1 when the rollout was aborted or another took its place, 75 on
    Ctrl-C: the same command goes on. 69: the broker does not tell, or does not allow it.
    """
    options = Options(_waves(waves), per_minute, abort_over, min_executed)
    target, more = f"group/{group}", {"rollout": rollout, "expires": expires}
    wanted = wanted_document(target, model, set_ or [], document, {"digest": digest, "name": name}, more)
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    fleet, shown = Fleet(settings, group, key), _Shown(json_)
    try:
        last = Conductor(wanted, options, fleet.sign).run(fleet.connect, shown.show, shown.lost)
    except BrokerError as error:
        end(NOBODY, str(error))
    except (CannotBeginError, RefusedError) as error:
        end(FAILED, str(error))
    except KeyboardInterrupt:
        end(UNFINISHED, "the devices stay where they are; the same command goes on")
    raise typer.Exit(DONE if last.decision.verdict is Verdict.SUCCEEDED else FAILED)


class _Shown:
    """Prints what has changed."""

    def __init__(self, json_: bool) -> None:
        self._json = json_
        self._last = ""
        self._begun = False
        self._faults: set[str] = set()
        self._told: str | None = None

    def show(self, picture: Picture) -> None:
        self._say(not_heeded(picture))
        told = json.dumps(as_json(picture), ensure_ascii=False) if self._json else line(picture)
        if not self._json:
            if not self._begun:
                typer.echo(headline(picture))
            for fault in faults(picture.members):
                if fault not in self._faults:
                    typer.echo(f"  {fault}")
                    self._faults.add(fault)
        self._begun = True
        if told != self._last:
            typer.echo(told)
            self._last = told

    def lost(self, reason: str) -> None:
        self._say(f"{reason}; trying again")

    def _say(self, reason: str | None) -> None:
        """Print what is wrong, once."""
        if reason is not None and reason != self._told:
            typer.echo(f"edged: {reason}", err=True)
        self._told = reason


def _waves(text: str) -> tuple[float, ...]:
    try:
        waves = tuple(float(part) for part in text.split(","))
    except ValueError:
        waves = ()
    if not waves or not all(0 < wave <= 100 for wave in waves) or list(waves) != sorted(set(waves)):
        raise BadUseError(f"--waves {text}: it must be numbers from 0 to 100, each larger, such as 5,25,100")
    return waves
