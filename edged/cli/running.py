"""Whether edged runs with these settings, and what it says of itself."""

from __future__ import annotations

import fcntl
import json
import os
import ssl
import urllib.error
import urllib.request

from edged.settings import Settings, address

_PATIENCE = 5.0
"""Seconds; the answer comes from a thread of its own."""


def is_running(settings: Settings) -> bool:
    """Whether a daemon holds state_dir. False where that may not be looked at."""
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


def ask_ready(settings: Settings) -> list[str]:
    """Why a job sent now would not be answered, as the daemon says at /readyz; none: it is ready.

    Raises OSError or ValueError, one line, where it cannot be asked.
    """
    http = settings.http
    if http.port == 0:
        raise ValueError("http.port = 0 is a port that nobody else knows")
    if http.client_ca_file is not None:
        raise ValueError("http.client_ca_file wants a certificate")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    context = None
    if http.cert_file is not None:
        # The daemon's own certificate, of whatever name: this is the machine itself, and nothing secret is sent.
        context = ssl.create_default_context(cafile=str(http.cert_file))
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    url = f"{'https' if context else 'http'}://{address(host, http.port)}/readyz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=_PATIENCE) as answer:
            body = answer.read(1 << 16)
    except urllib.error.HTTPError as error:  # 503 with its faults
        body = error.read(1 << 16)
    return [str(fault) for fault in json.loads(body)["faults"]]
