"""`edged demo`: broker, daemon and model in one process; asks and answers, then stops."""

from __future__ import annotations

from typing import Annotated

import typer

from edged import logs
from edged.cli.common import FAILED, end


def demo(
    stay: Annotated[bool, typer.Option("--stay", help="Keep running and print lines to try.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the daemon's log.")] = False,
) -> None:
    """Show the main job on embedded defaults: jobs over MQTT, right answers, a few metrics."""
    logs.configure("info" if verbose else "error", "auto")
    try:
        from edged.demo.show import DemoError, show
    except ImportError:
        end(FAILED, "the demo's broker is not installed: pip install 'edged[demo]'")
    try:
        show(stay)
    except DemoError as error:
        end(FAILED, str(error))
