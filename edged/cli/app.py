"""Assembles the commands; each one reads its arguments, calls the package that does the work, and prints."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Annotated

import typer

import edged
from edged.cli import answers, bench, config, demo, doctor, forget, model, run, submit

app = typer.Typer(
    name="edged",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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


@app.callback()
def options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_show_versions, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """A dependable worker for small language models on a board, fed over MQTT."""


app.command()(run.run)
app.command()(demo.demo)
app.command()(answers.generate)
app.command()(submit.submit)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.command()(forget.forget)
app.command()(config.config)
app.add_typer(model.app)
