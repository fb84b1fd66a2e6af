"""The settings: every key with its meaning, bounds and default."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edged.settings import template_kwargs
from edged.settings.fields import (
    ID_ALLOWED,
    Host,
    Id,
    Section,
    conflict,
    no_duplicates,
    numbers_are_not_flags,
    split_list,
)
from edged.settings.fleet import FleetSettings
from edged.settings.mqtt import MqttSettings

ENV_PREFIX, ENV_NEST = "EDGED_", "__"

Provider = Literal["cpu", "cuda", "tensorrt"]


class DeviceSettings(Section):
    """Identity of this device."""

    id: Id | None = Field(
        default=None,
        description="The device's name in topics; unset: the board's serial, else a hash of machine-id.",
        examples=["pi-hall-3"],
    )
    groups: Annotated[list[Id], BeforeValidator(split_list)] = Field(
        default=[],
        description="Groups whose jobs this device shares.",
        examples=[["hall-3"]],
        json_schema_extra={"allowed": "a list of names, each " + ID_ALLOWED},
    )
    addresses: bool = Field(default=False, description="Whether the info document lists the device's IP addresses.")
    share_load: bool = Field(
        default=False,
        description="Whether to give jobs of groups that wait to members with a free row, and to take theirs.",
    )


class ModelSettings(Section):
    """The model and its resources."""

    path: Path | None = Field(
        default=None,
        description="The model package's folder; unset: what `edged model use` chose, else the built-in demo model.",
        examples=["/var/lib/edged/models/phi-3-mini"],
    )
    execution_provider: Annotated[
        Literal["auto"] | Annotated[list[Provider], Field(min_length=1)],
        BeforeValidator(no_duplicates),
        BeforeValidator(split_list),  # the last one runs first
    ] = Field(
        default="auto",
        description="Execution providers in order of preference; auto: by board and package.",
    )
    runtime_wheels: Path | None = Field(
        default=None,
        description="A folder with a wheel of onnxruntime to use; unset: the installed one.",
        examples=["/etc/edged/wheels"],
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(template_kwargs.checked)] = Field(
        default={},
        description="Variables for the model's chat template; those of a job go before them.",
        examples=[{"enable_thinking": False}],
        json_schema_extra={"allowed": template_kwargs.ALLOWED},
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Threads for the model; unset: one per performance core.",
        examples=[4],
    )
    rows: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Jobs that run at the same time; unset: as many as memory allows, at most 8.",
        examples=[4],
    )
    context: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="Most tokens of prompt and answer together, per row; unset: as in the package.",
        examples=[4096],
    )
    kv_cache: Literal["published", "int8"] = Field(
        default="published",
        description="Numbers of the KV cache: as the package was published, or int8, about a quarter of the memory.",
    )
    calibration: Path | None = Field(
        default=None,
        description="A text to measure the scales of an int8 KV cache with; unset: a built-in one.",
        examples=["/etc/edged/calibration.txt"],
    )
    speculation: Literal["off", "on"] = Field(
        default="off",
        description="Whether to guess tokens that an answer repeats, and to check several in one step.",
    )
    prefill_chunk: int = Field(
        default=256, ge=2, le=4096, description="Most prompt tokens that are computed in one step."
    )
    max_stall: float = Field(
        default=1.0,
        ge=0.01,
        le=60,
        description="Seconds that a running job may wait for its next token while prompts of other jobs are computed.",
    )
    scrub_interval: int = Field(
        default=86_400,
        ge=0,
        le=31_536_000,
        description="Seconds in which an idle daemon reads the whole package once from the disk to check it; 0: never.",
    )


class CacheSettings(Section):
    """The prefix cache: limits for stored leading tokens that jobs share."""

    ram_bytes: int | None = Field(
        default=None,
        ge=0,
        le=1 << 40,
        description="Most memory for shared prefixes; 0: none; unset: an eighth of the usable memory if there is room.",
        examples=[536_870_912],
    )
    disk_bytes: int = Field(
        default=2_147_483_648,
        ge=0,
        le=1 << 44,
        description="Most disk for prefixes that outlive a restart; 0: none.",
    )
    daily_write_bytes: int = Field(
        default=1_073_741_824, ge=0, le=1 << 44, description="Most bytes of prefixes written to disk in a day."
    )
    pinned: Annotated[list[Annotated[str, Field(min_length=1, max_length=100_000)]], Field(max_length=64)] = Field(
        default=[],
        description="Instructions (system messages) that are computed at the start and kept on disk.",
        examples=[["You are a careful assistant."]],
        json_schema_extra={"allowed": "a list of up to 64 texts"},
    )
    allow_pin: bool = Field(
        default=False, description='Whether jobs may pin their prompts, with "cache": {"pin": true}.'
    )


class JobsSettings(Section):
    """Limits for jobs, and how long results are kept."""

    max_queued: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Most jobs on disk; further ones wait at the broker.",
    )
    max_bytes: int = Field(default=262_144, ge=1024, le=1_048_576, description="The largest job document, in bytes.")
    retention: int = Field(
        default=604_800,
        ge=1,
        le=31_536_000,
        description="Seconds for which a result is kept to answer repeats of its job.",
    )
    pieces_per_second: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Most pieces of an answer that are published in a second; faster ones are joined.",
    )


class HttpSettings(Section):
    """The HTTP endpoint for metrics and health."""

    host: Host = Field(default="127.0.0.1", description="Address of the HTTP endpoint for metrics and health.")
    port: int = Field(default=9765, ge=0, le=65535, description="TCP port of the HTTP endpoint; 0: any free one.")
    cert_file: Path | None = Field(
        default=None,
        description="PEM file of the certificate for TLS; unset: plain text.",
        examples=["/etc/edged/http.pem"],
    )
    key_file: Path | None = Field(
        default=None,
        description="PEM file of the key that belongs to http.cert_file.",
        examples=["/run/credentials/edged.service/http.key"],
    )
    client_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign client certificates; unset: clients need none.",
        examples=["/etc/edged/ca.pem"],
    )
    plain_text: bool = Field(
        default=False, description="Whether to serve beyond this machine without TLS, readable by everyone."
    )
    exemplars: bool = Field(
        default=False,
        description="Whether a scraper that asks for OpenMetrics gets it, with ids of jobs as exemplars of latencies.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> HttpSettings:
        if bool(self.cert_file) != bool(self.key_file):
            missing, present = ("key_file", "cert_file") if self.cert_file else ("cert_file", "key_file")
            raise conflict(missing, f"must be set together with http.{present}")
        if self.client_ca_file and not self.cert_file:
            raise conflict("cert_file", "must be set where http.client_ca_file is")
        if not self.cert_file and not self.plain_text and not self.is_loopback:
            raise conflict("cert_file", f"must be set where http.host is {self.host}, or http.plain_text be true")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class PowerSettings(Section):
    """What the board draws, where no sensor measures it."""

    idle_watts: float | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="What the board draws while no job runs; with busy_watts it stands in for a sensor.",
        examples=[2.7],
    )
    busy_watts: float | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="What the board draws while jobs run; results and metrics then say that energy is configured.",
        examples=[6.4],
    )

    budget_watts: float | None = Field(
        default=None,
        ge=0.1,
        le=10_000,
        description="Most that the board may draw, averaged over ten seconds: jobs pause for it; unset: no limit.",
        examples=[5.0],
    )
    budget_joules_per_day: float | None = Field(
        default=None,
        ge=100,
        le=1e9,
        description="Most energy of the board in any 24 hours, for a battery or the sun: jobs slow down before it is "
        "used up; unset: no limit.",
        examples=[350_000.0],
    )

    @model_validator(mode="after")
    def _fit_together(self) -> PowerSettings:
        if (self.idle_watts is None) != (self.busy_watts is None):
            missing, present = ("busy", "idle") if self.busy_watts is None else ("idle", "busy")
            raise conflict(f"{missing}_watts", f"must be set together with power.{present}_watts")
        if self.idle_watts is not None and self.busy_watts is not None and self.busy_watts < self.idle_watts:
            raise conflict("busy_watts", "must not be less than power.idle_watts")
        budget, idle = self.budget_joules_per_day, (self.idle_watts or 0.0) * 86400
        if budget is not None and budget <= idle:
            raise conflict("budget_joules_per_day", f"must be more than the {idle:.0f} J of power.idle_watts in a day")
        return self


class LogSettings(Section):
    """Log level and format."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    format: Literal["auto", "json", "console"] = Field(
        default="auto", description="Format of a line; auto: console on a terminal, else json."
    )


class Settings(BaseSettings):
    """All settings. The constructor reads no sources; ``load`` does."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NEST,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    state_dir: Path = Field(
        default=Path("/var/lib/edged"),
        description="The folder for jobs, results, models and cached prefixes.",
    )
    drain_seconds: int = Field(
        default=20,
        ge=0,
        le=600,
        description="Seconds that running jobs get to finish when the daemon is told to stop.",
    )
    heartbeat_seconds: int = Field(default=30, ge=1, le=3600, description="Seconds between two health messages.")
    device: DeviceSettings = DeviceSettings()
    mqtt: MqttSettings = MqttSettings()
    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    jobs: JobsSettings = JobsSettings()
    http: HttpSettings = HttpSettings()
    power: PowerSettings = PowerSettings()
    fleet: FleetSettings = FleetSettings()
    log: LogSettings = LogSettings()

    check_flags = field_validator("*", mode="before")(classmethod(numbers_are_not_flags))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_others: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the arguments only: ``load`` reads the other sources, to record where each value came from."""
        return (init_settings,)
