"""`edged run`: the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edged import logs
from edged.cli.common import FAILED, ConfigOption, HostOption, ModelOption, PortOption, end, settings_or_exit
from edged.daemon import Daemon, DaemonError


def run(
    config: ConfigOption = None,
    model_path: ModelOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where jobs and results lie; else state_dir.")] = None,
) -> None:
    """Serve jobs from MQTT until SIGTERM, which drains; a second one stops at once."""
    settings = settings_or_exit(
        config,
        model={"path": model_path},
        mqtt={"host": mqtt_host, "port": mqtt_port},
        state_dir=state_dir,  # type: ignore[arg-type]
    )
    logs.configure(settings.log.level, settings.log.format)
    try:
        daemon = Daemon(settings)
    except DaemonError as error:
        end(FAILED, str(error))
    daemon.stop_on_signals()
    daemon.run()
