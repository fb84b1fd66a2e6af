"""`edged submit`: a job over MQTT, its answer streamed to the terminal."""

from __future__ import annotations

import json
import sys
import uuid
from typing import Annotated, Any

import typer

from edged.cli.common import (
    BAD_USE,
    FAILED,
    NOBODY,
    BadUseError,
    ConfigOption,
    HostOption,
    JsonOption,
    PortOption,
    broker_settings_or_exit,
    end,
    job_document,
    said,
)
from edged.jobs.document import JobError
from edged.jobs.reading import read_submission
from edged.machine.board import DeviceIdError, detect, device_id
from edged.mqtt.sender import NobodyError, Sender, Update
from edged.mqtt.topics import ID_ALLOWED, is_id
from edged.settings import Settings

CANCEL_SECONDS = 10.0
_JOB_BYTES = 1 << 20


def submit(
    prompt: Annotated[str | None, typer.Argument(help="What to ask.")] = None,
    job: Annotated[str | None, typer.Option(help="A job document in place of a prompt; - is standard input.")] = None,
    device: Annotated[str | None, typer.Option(help="The device that shall answer; else this one.")] = None,
    group: Annotated[str | None, typer.Option(help="A group of which any device may answer.")] = None,
    id: Annotated[str | None, typer.Option(help="The job's id; the same id again gives the same answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait for the result; else for ever.")] = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    config: ConfigOption = None,
    json_: JsonOption = False,
) -> None:
    """Send a job and wait: resends until accepted, streams the answer, Ctrl-C cancels it.

    Exit code 69 where the broker says that no device of the group takes the job.
    """
    if device is not None and group is not None:
        raise BadUseError("give --device or --group, not both")
    for flag, name in (("--device", device), ("--group", group)):
        if name is not None and not is_id(name):
            raise BadUseError(f"{flag} {name!r} must be {ID_ALLOWED}")
    document = job_document(prompt, job, id=id, max_tokens=max_tokens)
    document.setdefault("id", f"submit-{uuid.uuid4().hex[:12]}")
    if not json_:
        document.setdefault("stream", "documents" not in document)
    try:
        read_submission(json.dumps(document).encode(), _JOB_BYTES)
    except JobError as error:
        end(BAD_USE, f"{error.code.value}: {error}")
    settings = broker_settings_or_exit(config, mqtt_host, mqtt_port)
    device = None if group else device or _own_id(settings)
    with Sender(settings.mqtt, device, group) as sender:
        terminal = _Terminal(json_, device, group, settings.mqtt.address)
        id = document["id"]
        try:
            for update in sender.submit(document, timeout):
                terminal.show(update)
        except KeyboardInterrupt:
            typer.echo(f"\nedged: cancelling {id}", err=True)
            terminal.quiet = True
            try:
                for update in sender.cancel(id, CANCEL_SECONDS):
                    terminal.show(update)
            except TimeoutError:
                end(FAILED, f"no device has answered the cancel of {id} within {CANCEL_SECONDS:g} s")
        except NobodyError:
            named = f" that name the model {document['model']}" if "model" in document else ""
            message = f"no device takes jobs of the group {group}{named}, says the broker at {terminal.place}"
            end(NOBODY, f"{message}; check device.groups and /readyz of its devices, then send the job again")
        except TimeoutError:
            told = "it was accepted" if terminal.accepted else "no device has accepted it, but one that comes back may"
            end(FAILED, f"no result for {id} within {timeout:g} s; {told}: the same --id fetches its result later")
    _conclude(update.document, terminal, json_)


class _Terminal:
    """Prints an answer as it arrives. Pieces may be missing (QoS 0), or repeat when the job runs again."""

    def __init__(self, quiet: bool, device: str | None, group: str | None, place: str) -> None:
        """`device` or `group` is to answer; `place` is the broker's address."""
        self.quiet = quiet
        self._device = device
        self._asked = device or f"no device of group {group}"
        self.place = place
        self._status: dict[str, Any] = {}
        self._protocol = "5"
        self._refusals: set[str] = set()
        self._waiting = self.accepted = False
        self._shown = ""

    def show(self, update: Update) -> None:
        self.accepted = self.accepted or update.kind in ("event", "result", "stream")
        self._waiting = self._waiting or update.kind == "waiting"
        if update.kind == "status":
            self._status = update.document
        if update.kind in ("status", "waiting") and self._waiting and not self.accepted:
            typer.echo(f"edged: {self._asked} at {self.place} {self._why()}", err=True)
        if update.kind == "refused" and update.document["reason"] not in self._refusals:
            self._refusals.add(update.document["reason"])
            typer.echo(f"edged: {update.document['reason']}; trying again", err=True)
        if update.kind == "link":
            self._protocol = update.document.get("protocol", self._protocol)
            self.place = update.document.get("broker", self.place)
        if update.kind == "link" and not update.document["up"]:
            typer.echo(f"edged: {self.place} not connected: {update.document['reason']}; trying again", err=True)
        elif update.kind == "stream" and not self.quiet:
            if update.document.get("seq") == 0:
                self._begin_anew()
            self._print(str(update.document.get("text", "")))

    def complete(self, text: str) -> None:
        """Print the rest of the answer."""
        if not text.startswith(self._shown):
            self._begin_anew()
        self._print(text[len(self._shown) :] + "\n")

    def _why(self) -> str:
        """Why no device may have accepted the job, by the last status."""
        state, reason = self._status.get("state"), self._status.get("reason")
        if self._device is None:
            silent = "; over MQTT 3.1.1 the broker does not say whether any device takes such jobs"
            return "has accepted the job yet" + (silent if self._protocol == "3.1.1" else "")
        if state is None:
            return "has not accepted the job yet, and no such device has shown itself there so far: is the name right?"
        if state == "offline":
            return f"is offline ({reason}); it gets the job once it is back"
        return "has not accepted the job yet" + (f": {reason}" if reason else "")

    def _begin_anew(self) -> None:
        if self._shown:
            typer.echo()
        self._shown = ""

    def _print(self, text: str) -> None:
        typer.echo(text, nl=False)
        sys.stdout.flush()
        self._shown += text


def _conclude(result: dict[str, Any], terminal: _Terminal, json_: bool) -> None:
    if result.get("kept") is False:
        end(FAILED, f"the result of {result['id']} was delivered before and not kept (store: false)")
    if json_:
        typer.echo(json.dumps(result, ensure_ascii=False))
    error = result.get("error")
    if error is not None:
        code = error["code"]
        end(BAD_USE if code in ("invalid_job", "id_conflict") else FAILED, f"{code}: {error['message']}")
    if not json_:
        speed = result.get("tokens_per_second", {}).get("decode")
        usage = result["usage"]
        terminal.complete(said(result))
        typer.echo(
            f"[{result['device']}: {usage['completion_tokens']} tokens in {result['timings']['total']:.2f} s"
            + (f", {speed:.0f} tok/s]" if speed else "]"),
            err=True,
        )


def _own_id(settings: Settings) -> str:
    if settings.device.id is not None:
        return settings.device.id
    try:
        return device_id(detect())
    except DeviceIdError as error:
        raise BadUseError(f"{error}: give --device or --group") from None
