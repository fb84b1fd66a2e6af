"""Assembles the commands; each one reads its arguments, calls the package that does the work, and prints.

A command's module is imported only where the command is called or all are listed: on a board the others would cost
seconds of every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Annotated

import typer

import edged

COMMANDS = {
    "run": "run",
    "demo": "demo",
    "generate": "answers",
    "submit": "submit",
    "bench": "bench",
    "doctor": "doctor",
    "top": "top",
    "export": "export",
    "fleet": "fleet",
    "forget": "forget",
    "config": "config",
    "model": "model",
}
"""Each command and the module in edged.cli that has it: a function of that name, or the group `app`."""
GROUPS = ("model", "fleet")
"""Commands that have commands."""


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """The command line for `arguments`: with the command that they begin with, else with all."""
    app = typer.Typer(
        name="edged",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(options)
    called = arguments[0] if arguments else ""
    for name in [called] if called in COMMANDS else COMMANDS:
        module = import_module(f"edged.cli.{COMMANDS[name]}")
        if name in GROUPS:
            app.add_typer(module.app)
        else:
            app.command(name)(getattr(module, name))
    return app


def versions() -> str:
    """The versions of edged, Python and onnxruntime, without importing onnxruntime."""
    runtime = "no onnxruntime"
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            runtime = f"{name} {version(name)}"
    return f"edged {edged.__version__} (Python {python_version()}, {runtime})"


def _show_versions(wanted: bool) -> None:
    if wanted:
        typer.echo(versions())
        raise typer.Exit


def options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """A dependable worker for small language models on a board, fed over MQTT."""
