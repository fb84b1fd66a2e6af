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
from edged.app import build
from edged.cli.common import (
    BAD_SETTINGS,
    FAILED,
    ConfigOption,
    HostOption,
    ModelOption,
    PortOption,
    broker_flags,
    end,
    settings_or_exit,
)
from edged.report.supervisor import Supervisor
from edged.settings import SettingsError, load
from edged.startup import StartError


def run(
    config: ConfigOption = None,
    model: ModelOption = None,
    mqtt_host: HostOption = None,
    mqtt_port: PortOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="The folder for jobs and results; else state_dir.")] = None,
) -> None:
    """Serve jobs from MQTT until SIGTERM, which drains; a second one stops at once. SIGHUP takes new settings."""
    flags: dict[str, Any] = {
        "model": {"path": model},
        "mqtt": broker_flags(mqtt_host, mqtt_port),
        "state_dir": state_dir,
    }
    early_reloads: list[int] = []  # SIGHUPs that come before there is a daemon
    signal.signal(signal.SIGHUP, lambda number, _frame: early_reloads.append(number))
    settings = settings_or_exit(config, **flags)
    logs.configure(settings.log.level, settings.log.format)
    _keep_out_of_core_dumps()
    supervisor = Supervisor()
    try:
        daemon = build(settings, supervisor=supervisor, load_settings=lambda remote: load(config, flags, remote))
    except SettingsError as error:
        supervisor.status(str(error))
        end(BAD_SETTINGS, str(error))
    except StartError as error:
        supervisor.status(str(error))
        end(FAILED, str(error))
    daemon.handle_signals()
    if early_reloads:
        daemon.reload()
    if daemon.run():
        # A reload: the same process, so that systemd sees no end, but a new program, so that all settings take effect.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the new program sets its handler before it reads the settings
        os.environ.update(supervisor.environment)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if daemon.engine_busy:
        # Everything is closed. A regular exit would destroy the threads of a session that still loads, which aborts.
        sys.stdout.flush()
        os._exit(0)


def _keep_out_of_core_dumps() -> None:
    """Keep prompts out of core dumps (core(5)): the limit stops the kernel's files, the filter those of handlers."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):  # a kernel without it
        Path("/proc/self/coredump_filter").write_text("0")
