"""The settings of the link to the broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from edged.settings.errors import SettingsError, reason
from edged.settings.fields import Broker, Host, Section, address, conflict, split_address, split_list

DEFAULT_ROOT = "edged/v1"
_TOPIC = r"^[^+#/$\x00-\x1f][^+#/\x00-\x1f]*(/[^+#/\x00-\x1f]+)*$"
_TOPIC_ALLOWED = "1 to 128 characters without + # or a leading $, no empty level"


class MqttSettings(Section):
    """The broker and how to reach it."""

    host: Host = Field(default="127.0.0.1", description="The broker's name or address.")
    port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="The broker's TCP port; unset: 1883, 8883 with TLS; over WebSocket 80, 443 with TLS.",
        examples=[1883],
    )
    fallbacks: Annotated[list[Broker], Field(max_length=7), BeforeValidator(split_list)] = Field(
        default=[],
        description="Brokers to use while mqtt.host is away, in order; only such as share its topics.",
        examples=[["broker-2.example", "10.0.0.3:1884"]],
        json_schema_extra={"allowed": "a list of up to 7 brokers, each HOST or HOST:PORT; without a port, mqtt.host's"},
    )
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="The MQTT version; auto tries 5 and falls back to 3.1.1."
    )
    username: str | None = Field(default=None, min_length=1, description="The user at the broker.", examples=["edged"])
    password: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="The password at the broker; password_file keeps it out of this file.",
        examples=["change-me"],
    )
    password_file: Path | None = Field(
        default=None,
        description="A file whose first line is the password, as a systemd credential is.",
        examples=["/run/credentials/edged.service/mqtt-password"],
    )
    tls: bool = Field(
        default=False, description="Whether to encrypt the connection and to check the broker's certificate."
    )
    ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities the broker is checked against; unset: the system's.",
        examples=["/etc/edged/ca.pem"],
    )
    cert_file: Path | None = Field(
        default=None,
        description="PEM file of this device's own certificate.",
        examples=["/etc/edged/device.pem"],
    )
    key_file: Path | None = Field(
        default=None,
        description="PEM file of the key that belongs to cert_file.",
        examples=["/etc/edged/device.key"],
    )
    alpn: str | None = Field(
        default=None,
        pattern=r"^[!-~]{1,255}$",
        description="ALPN protocol to offer in the TLS handshake; AWS IoT Core on port 443 wants x-amzn-mqtt-ca.",
        examples=["x-amzn-mqtt-ca"],
        json_schema_extra={"allowed": "1 to 255 printable ASCII characters without spaces"},
    )
    websocket_path: str | None = Field(
        default=None,
        pattern=r"^/[!-~]{0,255}$",
        description="Path for MQTT over WebSocket; unset: MQTT without WebSocket.",
        examples=["/mqtt"],
        json_schema_extra={"allowed": "a path that begins with /, without spaces"},
    )
    keep_alive: int = Field(
        default=30,
        ge=5,
        le=3600,
        description="Keep-alive in seconds; a dead connection is noticed within twice this time.",
    )
    root: str = Field(
        default=DEFAULT_ROOT,
        max_length=128,
        pattern=_TOPIC,
        description="Prefix of every topic.",
        json_schema_extra={"allowed": _TOPIC_ALLOWED},
    )
    discovery_prefix: str | None = Field(
        default=None,
        max_length=128,
        pattern=_TOPIC,
        description="Prefix under which Home Assistant looks for devices; unset: edged does not show itself there.",
        examples=["homeassistant"],
        json_schema_extra={"allowed": _TOPIC_ALLOWED},
    )

    @model_validator(mode="after")
    def _fit_together(self) -> MqttSettings:
        if self.password and self.password_file:
            raise conflict("password_file", "must not be set together with mqtt.password")
        if (self.password or self.password_file) and not self.username:
            raise conflict("username", "must be set where there is a password")
        if bool(self.cert_file) != bool(self.key_file):
            missing, present = ("key_file", "cert_file") if self.cert_file else ("cert_file", "key_file")
            raise conflict(missing, f"must be set together with mqtt.{present}")
        for field in ("ca_file", "cert_file", "alpn"):
            if getattr(self, field) and not self.tls:
                raise conflict("tls", f"must be true where mqtt.{field} is set")
        if len({broker.address for broker in self.brokers}) <= len(self.fallbacks):
            raise conflict("fallbacks", "must name no broker twice, and not mqtt.host")
        return self

    @property
    def effective_port(self) -> int:
        """The TCP port to connect to."""
        if self.port is not None:
            return self.port
        if self.websocket_path is not None:
            return 443 if self.tls else 80
        return 8883 if self.tls else 1883

    @property
    def address(self) -> str:
        """The broker's host and port, for people."""
        return address(self.host, self.effective_port)

    @property
    def brokers(self) -> tuple[MqttSettings, ...]:
        """These settings for each broker alone, in order of preference."""
        port = self.effective_port
        places = [(self.host, port), *((host, own or port) for host, own in map(split_address, self.fallbacks))]
        return tuple(self.model_copy(update={"host": host, "port": port, "fallbacks": []}) for host, port in places)

    def read_password(self) -> str | None:
        """The password; with ``password_file``, the first line of its present content.

        Raises SettingsError where the file cannot be read, or where its first line is empty, begins with a byte order
        mark, or begins or ends with white space: editors leave these behind unseen.
        """
        if self.password_file is None:
            return self.password.get_secret_value() if self.password else None
        try:
            password = self.password_file.read_bytes().decode().partition("\n")[0].removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            wrong = reason(error)
        else:
            if not password:
                wrong = "its first line must be the password, and is empty"
            elif password.startswith("\ufeff"):
                wrong = "it begins with a byte order mark: save it as UTF-8 without one"
            elif password != password.strip():
                wrong = "its first line begins or ends with white space: remove it, or set mqtt.password instead"
            else:
                return password
        raise SettingsError(f"mqtt.password_file = {self.password_file}: {wrong}")
