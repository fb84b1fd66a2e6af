"""`edged demo`: broker, daemon and model in one process; asks and answers, then stops."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edged import logs
from edged.cli.common import FAILED, check_folder, end


def demo(
    model: Annotated[
        Path | None, typer.Option("--model", help="The folder of an instruct model's package; else the built-in model.")
    ] = None,
    stay: Annotated[bool, typer.Option("--stay", help="Keep running and print lines to try.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the daemon's log.")] = False,
) -> None:
    """Show the main job on embedded defaults: jobs over MQTT, right answers, a few metrics."""
    check_folder("--model", model)
    logs.configure("info" if verbose else "error", "auto")
    if model is not None:
        _check_package(model)
    try:
        from edged.demo.show import DemoError, show
    except ImportError:
        end(FAILED, "the demo's broker is not installed: pip install 'edged[demo]'")
    try:
        show(stay, model)
    except DemoError as error:
        end(FAILED, str(error))


def _check_package(folder: Path) -> None:
    from edged.engine.package import PackageError, open_package

    try:
        open_package(folder)
    except PackageError as error:
        end(FAILED, str(error))
