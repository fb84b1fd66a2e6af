"""What a start needs of the settings and the machine. A reload checks the same before the old process ends."""

from __future__ import annotations

import fcntl
import os
import ssl
from dataclasses import dataclass

from edged.endpoints import check_address, http_context
from edged.machine.board import Board, DeviceIdError, device_id
from edged.settings import Settings
from edged.tls import CredentialsError


class StartError(Exception):
    """The daemon cannot start; one line that says why and what would help."""


@dataclass(frozen=True)
class Identity:
    """The device's id, and the TLS of its HTTP endpoint (None: plain text)."""

    device: str
    http_context: ssl.SSLContext | None


def check_settings(settings: Settings, board: Board, running: Settings | None = None) -> Identity:
    """Check what a start would refuse. Raises StartError, and SettingsError for an unusable password file.

    `running`: the settings of this process, which holds their state_dir and HTTP address already. A reload passes them,
    and changed ones are tried. A start passes None, and takes state_dir and address for good right afterwards.
    """
    try:
        device = settings.device.id or device_id(board, board.root)
    except DeviceIdError as error:
        raise StartError(str(error)) from None
    settings.mqtt.read_password()
    try:
        context = http_context(settings)
    except CredentialsError as error:
        raise StartError(str(error)) from None
    if running is not None and running.state_dir != settings.state_dir:
        os.close(lock_state_dir(settings))
    http = settings.http
    if running is not None and (running.http.host, running.http.port) != (http.host, http.port):
        try:
            check_address(http.host, http.port)
        except OSError as error:
            raise address_refused(settings, error) from None
    return Identity(device, context)


def address_refused(settings: Settings, error: OSError) -> StartError:
    """The error for an HTTP address on which the daemon cannot listen."""
    http = settings.http
    reason = (error.strerror or str(error)).lower()
    return StartError(f"http.port = {http.port} on {http.host} cannot be had: {reason}")


def state_dir_refused(settings: Settings, error: OSError) -> StartError:
    """The error for a state_dir that cannot be written."""
    reason = (error.strerror or str(error)).lower()
    return StartError(f"state_dir {settings.state_dir} cannot be written: {reason}")


def lock_state_dir(settings: Settings) -> int:
    """Create state_dir if needed and lock it for this process. Returns a file descriptor. Raises StartError."""
    folder = settings.state_dir
    descriptor = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            hint = "stop it, or give this one its own state_dir"
            raise StartError(f"another edged runs on {folder}: {hint}") from None
        raise state_dir_refused(settings, error) from None
    return descriptor
