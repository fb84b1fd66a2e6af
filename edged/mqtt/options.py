"""How to reach the broker."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def place(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """Settings of the link. Files are read anew at every attempt, so that what was renewed is used."""

    host: str = "localhost"
    port: int = 1883
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    username: str | None = None
    password: str | None = None
    password_file: Path | None = None
    """Holds the password alone; a line end is cut off. Wins over `password`."""
    tls: bool = False
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""
    cert_file: Path | None = None
    key_file: Path | None = None
    keep_alive: int = 30
    """Seconds. A dead network is noticed within twice this time."""
    root: str = "edged/v1"
    receive_maximum: int = 64
    """Unacknowledged messages that an MQTT 5 broker may have under way (§3.1.2.11.3)."""
    maximum_packet_size: int = 2 * 1024 * 1024
    """Bytes. An MQTT 5 broker drops larger messages without a word (§3.1.2.11.4)."""
    session_expiry: int = 7 * 24 * 3600
    """Seconds that an MQTT 5 broker keeps the session of an absent device (§3.1.2.11.2)."""

    @property
    def place(self) -> str:
        """The broker, for people."""
        return place(self.host, self.port)
