"""Settings that a desired document may change: which ones, what is wrong with a value, and the file that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from edged.checked_json import DamagedError, expect_format, form_expected, read_checked, write_checked
from edged.settings.errors import SettingsError
from edged.settings.keys import KEYS, SECTIONS, brief, nearest

FILE = "settings.json"
"""In state_dir."""
OF_THE_DEVICE = frozenset({"device.groups"})
"""Only in the device's own document: it must not leave the group that addresses it by that document."""
UNNOTICED = frozenset({"device.groups", "jobs.retention", "log.level"})
"""The engine does not notice these, so that no package need prove itself with them."""
NAMES = (
    "device.groups",
    "model.rows",
    "model.context",
    "cache.ram_bytes",
    "cache.disk_bytes",
    "cache.daily_write_bytes",
    "jobs.retention",
    "power.budget_watts",
    "power.budget_joules_per_day",
    "log.level",
)
"""What may be set from afar: no path, no secret, no broker, nothing of [fleet]."""
_FORMAT = 1
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A value that a rollout set."""

    value: Any
    rollout: str

    @property
    def origin(self) -> str:
        """Where a setting has it from, for people."""
        return f"rollout {self.rollout}"


Remotes: TypeAlias = Mapping[str, Remote]
"""By the setting's name."""


@dataclass(frozen=True)
class Kept:
    """What the file has. `before`: what a trial goes back to; None: no settings are on trial."""

    serving: Remotes = field(default_factory=dict)
    before: Remotes | None = None


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a document, by the settings' names, as these have them.

    Raises SettingsError, which names the first wrong one and says what would be right.
    """
    checked = {}
    for name, value in values.items():
        if name not in NAMES:
            raise SettingsError(_not_remote(name))
        section, _, short = name.partition(".")
        key = KEYS[name]
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        try:
            if value is None or isinstance(key.default, list) != isinstance(value, list):
                raise ValueError  # a list in text is for the environment
            model = SECTIONS[section].model_validate({short: whole}, strict=True)
        except ValueError:  # pydantic's too
            raise SettingsError(f"{name} = {brief(value)}: must be {key.allowed}") from None
        checked[name] = getattr(model, short)
    return checked


def _not_remote(name: str) -> str:
    if name in KEYS:
        return f"{name} cannot be set from afar, only {', '.join(NAMES)}"
    meant = nearest(name)
    return f"{name[:80]}: no such setting" + (f"; did you mean {meant.name}?" if meant else "")


def read_kept(state_dir: Path) -> Kept:
    """What rollouts set; nothing where there is no file. Raises DamagedError, and OSError as open does."""
    fields = read_checked(state_dir / FILE, _MOST_BYTES)
    if fields is None:
        return Kept()
    with form_expected():
        expect_format(fields, _FORMAT)
        before = fields["before"]
        return Kept(_remotes(fields["settings"]), None if before is None else _remotes(before))


def write_kept(state_dir: Path, kept: Kept) -> None:
    """Replace the file durably. Raises OSError."""
    before = None if kept.before is None else _fields(kept.before)
    write_checked(state_dir / FILE, {"format": _FORMAT, "settings": _fields(kept.serving), "before": before})


def schemas() -> dict[str, Any]:
    """The JSON schema of each setting that may be set."""
    found = {}
    for name in NAMES:
        section, _, short = name.partition(".")
        found[name] = {"description": KEYS[name].description, **_not_null(SECTIONS[section], short)}
    return found


def _not_null(model: Any, short: str) -> dict[str, Any]:
    schema = model.model_json_schema()["properties"][short]
    (kind,) = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return {name: value for name, value in kind.items() if name not in ("default", "title", "examples", "description")}


def _fields(remotes: Remotes) -> dict[str, Any]:
    return {name: {"value": one.value, "rollout": one.rollout} for name, one in remotes.items()}


def _remotes(fields: Mapping[str, Any]) -> Remotes:
    try:
        values = check({name: one["value"] for name, one in fields.items()})
    except SettingsError as error:
        raise DamagedError(f"a setting in it is not one of this version: {error}") from None
    return {name: Remote(value, str(fields[name]["rollout"])) for name, value in values.items()}
