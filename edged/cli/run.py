"""`edged run`: the daemon."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edged import logs
from edged.cli.common import (
    BAD_SETTINGS,
    FAILED,
    ConfigOption,
    HostOption,
    ModelOption,
    PortOption,
    end,
    settings_or_exit,
)
from edged.daemon import Daemon, DaemonError
from edged.report.supervisor import Supervisor
from edged.settings import SettingsError, load


def run(
    config: ConfigOption = None,
    model: ModelOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where jobs and results lie; else state_dir.")] = None,
) -> None:
    """Serve jobs from MQTT until SIGTERM, which drains; a second one stops at once. SIGHUP takes new settings."""
    flags: dict[str, Any] = {
        "model": {"path": model},
        "mqtt": {"host": mqtt_host, "port": mqtt_port},
        "state_dir": state_dir,
    }
    asked_to_reload: list[int] = []  # while there is no daemon yet to do so
    signal.signal(signal.SIGHUP, lambda number, _frame: asked_to_reload.append(number))
    settings = settings_or_exit(config, **flags)
    try:
        settings.mqtt.read_password()
    except SettingsError as error:
        end(BAD_SETTINGS, str(error))
    logs.configure(settings.log.level, settings.log.format)
    _keep_out_of_core_dumps()
    supervisor = Supervisor()
    try:
        daemon = Daemon(settings, supervisor=supervisor, check_settings=lambda: _check(config, flags))
    except DaemonError as error:
        supervisor.status(str(error))
        end(FAILED, str(error))
    daemon.heed_signals()
    if asked_to_reload:
        daemon.reload()
    if daemon.run():
        # A reload: the same process, so systemd sees no end, and everything anew, so every setting counts.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the lines above: the settings are read after it
        os.environ.update(supervisor.environment)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_out_of_core_dumps() -> None:
    """Prompts are in memory. The limit stops the kernel's own files; the filter counts for handlers too (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # a kernel without it
        Path("/proc/self/coredump_filter").write_text("0")


def _check(config: Path | None, flags: dict[str, Any]) -> None:
    """Raises SettingsError where these settings would not do."""
    load(config, flags).settings.mqtt.read_password()
