"""The HTTP endpoint that the settings describe: its address and its TLS."""

from __future__ import annotations

import socket
import ssl

from edged.settings import Settings
from edged.tls import server_context


def http_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS of the HTTP endpoint; None: plain text. Raises CredentialsError."""
    http = settings.http
    if http.cert_file is None or http.key_file is None:
        return None
    return server_context(http.cert_file, http.key_file, http.client_ca_file)


def check_address(host: str, port: int) -> None:
    """Listen on an address for a moment. Raises OSError where that fails."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
