"""Asks a running daemon: whether there is one with these settings, and which faults it has."""

from __future__ import annotations

import fcntl
import json
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass

from edged.faults import Fault
from edged.settings import Settings, address

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
    """What /readyz says: without `faults` the daemon is ready; `warnings` are promises that the broker breaks."""

    faults: list[Fault]
    warnings: list[Fault]


def ask_ready(settings: Settings) -> Answer:
    """What the daemon says at /readyz.

    Raises OSError or ValueError, one line, where the daemon cannot be asked or does not answer with faults.
    """
    http = settings.http
    if http.port == 0:
        raise ValueError("http.port = 0 is a random port, which only the daemon's log names")
    if http.client_ca_file is not None:
        raise ValueError("http.client_ca_file asks for a client certificate")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    context = None
    if http.cert_file is not None:
        # Trust the daemon's own certificate whatever name it has: this is the same machine, and nothing secret is sent.
        context = ssl.create_default_context(cafile=str(http.cert_file))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    url = f"{'https' if context else 'http'}://{address(host, http.port)}/readyz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=_TIMEOUT) as answer:
            body = answer.read(1 << 16)
    except urllib.error.HTTPError as error:  # 503 with its faults
        body = error.read(1 << 16)
    try:
        document = json.loads(body)
        return Answer(*([Fault(**fault) for fault in document[name]] for name in ("faults", "warnings")))
    except (KeyError, TypeError):
        raise ValueError(f"the answer of {url} is not that of this version of edged") from None
