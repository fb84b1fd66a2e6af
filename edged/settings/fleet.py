"""The section [fleet]: who may tell this device which model to serve, and what to do."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from edged.settings.fields import Section, conflict, no_duplicates, split_list

Key = Annotated[str, Field(pattern=r"^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$")]
"""An Ed25519 public key: base64 of its SubjectPublicKeyInfo (RFC 8410), 44 bytes."""
_MOST_KEYS = 16
_ALLOWED = f"a list of up to {_MOST_KEYS} Ed25519 public keys, each the line within its PEM file (MCowBQYDK2VwAyEA…)"
Keys = Annotated[list[Key], Field(max_length=_MOST_KEYS), BeforeValidator(split_list)]
CommandName = Literal["restart", "reload", "bench", "doctor", "logs", "forget"]
_EXAMPLE = ["MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="]


class FleetSettings(Section):
    """Which desired documents the device follows, and which commands it runs."""

    trusted_keys: Keys = Field(
        default=[],
        description="Public keys that sign desired documents; unset: none is followed, unless fleet.unsigned says so.",
        examples=[_EXAMPLE],
        json_schema_extra={"allowed": _ALLOWED},
    )
    conductor_keys: Keys = Field(
        default=[],
        description="Further public keys, which sign only how far a rollout goes and that it is aborted.",
        examples=[_EXAMPLE],
        json_schema_extra={"allowed": _ALLOWED},
    )
    unsigned: bool = Field(
        default=False, description="Whether to follow desired documents of anyone who may publish them, without keys."
    )
    pull_bytes_per_second: int | None = Field(
        default=None,
        ge=1024,
        le=10_000_000_000,
        description="Most bytes per second of a rollout's download; unset: no limit.",
        examples=[500_000],
    )

    commands: Annotated[list[CommandName], BeforeValidator(no_duplicates), BeforeValidator(split_list)] = Field(
        default=[],
        description="Commands over MQTT that the device runs; signed ones only, where fleet.trusted_keys is set.",
        examples=[["logs", "doctor"]],
    )

    @model_validator(mode="after")
    def _fit_together(self) -> FleetSettings:
        if self.trusted_keys and self.unsigned:
            raise conflict("unsigned", "must be false where fleet.trusted_keys is set")
        if self.conductor_keys and not self.trusted_keys:
            raise conflict("trusted_keys", "must be set where fleet.conductor_keys is")
        if self.trusted_keys and find_spec("cryptography") is None:
            raise conflict("trusted_keys", "needs the package cryptography: pip install 'edged[fleet]', or no keys")
        return self
