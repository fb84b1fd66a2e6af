"""Asks a running daemon: whether there is one with these settings, and which faults it has."""

from __future__ import annotations

import fcntl
import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from edged.faults import Fault
from edged.settings import Settings, address

_MOST_BYTES = 1 << 20
_TIMEOUT = 5.0
"""Seconds; the daemon answers on a thread of its own, however busy it is."""


def is_running(settings: Settings) -> bool:
    """Whether a daemon holds the lock on state_dir. False also where this user may not look."""
    try:
        lock = os.open(settings.state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@dataclass(frozen=True)
class Answer:
    """What /readyz says: without `faults` the daemon is ready; `warnings` are promises that the broker breaks.

    `broker`: the address that it is connected to, over this version of MQTT; None where it is not.
    """

    faults: list[Fault]
    warnings: list[Fault]
    broker: str | None
    protocol: str | None


def ask_ready(settings: Settings) -> Answer:
    """What the daemon says at /readyz.

    Raises OSError or ValueError, one line, where the daemon cannot be asked or does not answer with faults.
    """
    document = ask(settings, "/readyz")
    try:
        faults, warnings = ([Fault(**fault) for fault in document[name]] for name in ("faults", "warnings"))
        return Answer(faults, warnings, document["broker"], document["protocol"])
    except (KeyError, TypeError):
        raise _foreign(settings, "/readyz") from None


def ask_overview(settings: Settings) -> dict[str, Any]:
    """The document of /status.json. Raises OSError or ValueError as ask_ready() does."""
    document = ask(settings, "/status.json")
    if not document.keys() >= {"info", "health", "jobs", "log", "history"}:
        raise _foreign(settings, "/status.json")
    return document


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """The JSON object that the daemon answers on `path`. Raises OSError or ValueError, one line."""
    http = settings.http
    if http.port == 0:
        raise ValueError("http.port = 0 is a random port, which only the daemon's log names")
    if http.client_ca_file is not None:
        raise ValueError("http.client_ca_file asks for a client certificate")
    context = None
    if http.cert_file is not None:
        # Trust the daemon's own certificate whatever name it has: this is the same machine, and nothing secret is sent.
        context = ssl.create_default_context(cafile=str(http.cert_file))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(place(settings) + path, timeout=_TIMEOUT) as answer:
            body = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:  # 503 with its faults
        body = error.read(_MOST_BYTES)
    try:
        document = json.loads(body)
    except ValueError:
        raise _foreign(settings, path) from None
    if not isinstance(document, dict):
        raise _foreign(settings, path)
    return document


def place(settings: Settings) -> str:
    """The address of the daemon's HTTP endpoint, for this machine."""
    http = settings.http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"{'https' if http.cert_file else 'http'}://{address(host, http.port)}"


def _foreign(settings: Settings, path: str) -> ValueError:
    return ValueError(f"the answer of {place(settings)}{path} is not that of this version of edged")
