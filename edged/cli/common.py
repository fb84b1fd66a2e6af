"""Shared by several commands: common options, settings from flags, and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from edged import logs
from edged.engine import runtime
from edged.models.store import DEMO_FOLDER
from edged.settings import Loaded, Settings, SettingsError, load

DONE, FAILED, BAD_USE, NOBODY, UNFINISHED, BAD_SETTINGS = 0, 1, 2, 69, 75, 78

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file; else /etc/edged/edged.toml if there is one.")
]
ModelOption = Annotated[
    Path | None, typer.Option("--model", help="The model package's folder; else the setting model.path.")
]
HostOption = Annotated[str | None, typer.Option("--mqtt-host", help="The broker; else the setting mqtt.host.")]
PortOption = Annotated[int | None, typer.Option("--mqtt-port", help="Its port; else the setting mqtt.port.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class BadUseError(Exception):
    """The command was called wrongly; one line, exit code 2."""


def broker_flags(host: str | None, port: int | None) -> dict[str, Any]:
    """The section mqtt of the flags: who names a broker wants no fallback."""
    return {"host": host, "port": port, "fallbacks": None if host is None and port is None else []}


def settings_or_exit(config: Path | None, **sections: dict[str, Any]) -> Settings:
    """The effective settings; flags that were not given are None. Exits 78 with one line where one is wrong."""
    return loaded_or_exit(config, **sections).settings


def loaded_or_exit(config: Path | None, **sections: dict[str, Any]) -> Loaded:
    """The effective settings with the origin of each; otherwise like settings_or_exit()."""
    try:
        return load(config, sections)
    except SettingsError as error:
        end(BAD_SETTINGS, str(error))


def broker_settings_or_exit(config: Path | None, host: str | None, port: int | None) -> Settings:
    """The settings of a command that connects to the broker, which the flags may name; only errors are logged."""
    settings = settings_or_exit(config, mqtt=broker_flags(host, port))
    try:
        settings.mqtt.read_password()
    except SettingsError as error:
        end(BAD_SETTINGS, str(error))
    logs.configure("error", "auto")
    return settings


def choose_runtime(settings: Settings) -> None:
    """Use the onnxruntime in model.runtime_wheels; if it is refused, print the reason and use the installed one."""
    runtime.select_runtime(settings, DEMO_FOLDER)
    if runtime.selected.refused is not None:
        typer.echo(f"edged: {runtime.selected.refused}", err=True)


def end(code: int, message: str) -> NoReturn:
    """Print `message` on one line and exit."""
    typer.echo(f"edged: {message}", err=True)
    raise typer.Exit(code)


def check_folder(flag: str, path: Path | None) -> None:
    """Raises BadUseError if `path`, the value of `flag`, is not a folder."""
    if path is not None and not path.is_dir():
        raise BadUseError(f"{flag} {path} is not a folder: give the one that holds genai_config.json")


def job_document(prompt: str | None, job: str | None, **fields: Any) -> dict[str, Any]:
    """A job document from a prompt (a chat of one message) or from `job`, a file's name or `-` for standard input.

    `fields` that are not None override those of the document. Raises BadUseError.
    """
    if (prompt is None) == (job is None):
        raise BadUseError("give either a prompt or --job FILE (- for standard input)")
    if job is None:
        document: Any = {"messages": [{"role": "user", "content": prompt}]}
    else:
        try:
            text = sys.stdin.read() if job == "-" else Path(job).read_text(encoding="utf-8")
            document = json.loads(text)
        except OSError as error:
            raise BadUseError(f"--job {job}: {(error.strerror or str(error)).lower()}") from None
        except UnicodeDecodeError:
            raise BadUseError(f"--job {job} is not UTF-8 text") from None
        except (ValueError, RecursionError) as error:
            raise BadUseError(f"--job {job} is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise BadUseError(f"--job {job} must hold a JSON object")
    return {**document, **{name: value for name, value in fields.items() if value is not None}}


def said(result: dict[str, Any]) -> str:
    """A result as a person reads it: the text, then calls of tools and ranked documents, one a line."""
    lines = [*result.get("tool_calls", ()), *result.get("ranking", ())]
    return "\n".join(filter(None, [result.get("text"), *(json.dumps(line, ensure_ascii=False) for line in lines)]))
