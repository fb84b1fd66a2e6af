"""Reads the settings from their sources, weakest first: defaults, TOML file, rollouts, environment, flags."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource

from edged.checked_json import DamagedError
from edged.settings.errors import SettingsError, reason
from edged.settings.keys import KEYS, SECTIONS, brief, nearest
from edged.settings.model import ENV_NEST, ENV_PREFIX, Settings
from edged.settings.remote import FILE, Remotes, read_kept

DEFAULT_FILE = Path("/etc/edged/edged.toml")
DEFAULT_ORIGIN = "default"


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each dotted key its origin: ``default``, a file, ``rollout ID``, a variable or a flag."""

    settings: Settings
    origins: dict[str, str] = field(default_factory=lambda: dict.fromkeys(KEYS, DEFAULT_ORIGIN))
    remote: Remotes = field(default_factory=dict)
    """What rollouts set."""
    left_out: str | None = None
    """Why nothing that rollouts set holds."""

    @property
    def overridden(self) -> Remotes:
        """What rollouts set, and a variable or a flag sets too."""
        if self.left_out is not None:
            return {}
        return {name: one for name, one in self.remote.items() if self.origins[name] != one.origin}

    def value(self, name: str) -> Any:
        """The value of a dotted key."""
        found: Any = self.settings
        for part in name.split("."):
            found = getattr(found, part)
        return found


Layers: TypeAlias = list[tuple[str, dict[str, Any]]]
"""A source and its values by their dotted keys; the file comes first."""


def load(config: Path | None = None, flags: Mapping[str, Any] | None = None, remote: Remotes | None = None) -> Loaded:
    """The effective settings.

    ``config`` must exist where it is given; else ``/etc/edged/edged.toml`` is read if there is one.
    ``flags`` is nested like the file; what is None in it was not given. ``remote``: what rollouts set; None: what
    state_dir has of it. Raises SettingsError, one line, but not where only ``remote`` is wrong.
    """
    faults: list[str] = []
    sources = [_from_file(config), _from_environment(faults), ("", dict(flags or {}))]
    layers = [(source, _flatten(found, source, faults)) for source, found in sources]
    if faults:
        raise _error(faults)
    left_out = None
    if remote is None:
        remote, left_out = _from_rollouts(layers)
    try:
        return _checked(layers, remote, left_out)
    except SettingsError as error:
        if not remote:
            raise
        alone = _checked(layers, {}, str(error))  # a board must start, whatever was set from afar
        return replace(alone, remote=remote)


def _checked(layers: Layers, remote: Remotes, left_out: str | None) -> Loaded:
    values: dict[str, Any] = {}
    origins = dict.fromkeys(KEYS, DEFAULT_ORIGIN)
    for place, (source, flat) in enumerate(layers):
        values |= flat
        origins |= {name: _origin(name, source) for name in flat}
        if place == 0:
            values |= {name: one.value for name, one in remote.items()}
            origins |= {name: one.origin for name, one in remote.items()}
    try:
        return Loaded(Settings(**_nested(values)), origins, remote, left_out)
    except ValidationError as error:
        raise _error(_faults(error, values, origins)) from None


def _error(faults: list[str]) -> SettingsError:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return SettingsError(faults[0] + more)


def _from_rollouts(layers: Layers) -> tuple[Remotes, str | None]:
    """What state_dir has, and why that cannot be read."""
    named = [flat["state_dir"] for _, flat in layers if "state_dir" in flat]
    folder = Path(str(named[-1])) if named else KEYS["state_dir"].default
    try:
        return read_kept(folder).serving, None
    except PermissionError:
        return {}, f"{folder / FILE}: this user may not read it: use sudo"
    except (OSError, DamagedError) as error:
        return {}, f"{folder / FILE}: {reason(error)}"


def _origin(name: str, source: str) -> str:
    if source == "environment":
        return KEYS[name].variable
    return source or KEYS[name].flag


def _from_file(config: Path | None) -> tuple[str, dict[str, Any]]:
    path = config if config is not None else DEFAULT_FILE
    try:
        with path.open("rb"):  # the source passes over a file that is not there
            pass
        return str(path), TomlConfigSettingsSource(Settings, toml_file=path)()
    except FileNotFoundError:
        if config is None:
            return str(path), {}
        raise SettingsError(f"{path}: there is no such file") from None
    except PermissionError:
        mend = "use sudo, or let a group of this user read it (chgrp, chmod g+r)"
        raise SettingsError(f"{path}: this user may not read it: {mend}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {reason(error)}") from None
    except ValueError as error:  # tomllib's on 3.11, tomli's on 3.10; it says line and column
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


class _Environment(EnvSettingsSource):
    """Keeps a list that is not JSON as text: the model splits it at commas, and its error names the key."""

    def decode_complex_value(self, field_name: str, field: Any, value: Any) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value


def _from_environment(faults: list[str]) -> tuple[str, dict[str, Any]]:
    # Checked first: the source passes over variables it does not know, and takes a whole section as JSON.
    known = {key.variable for key in KEYS.values()}
    unknown = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
    for name in unknown:
        dotted = name[len(ENV_PREFIX) :].replace(ENV_NEST, ".")
        if dotted.lower() in SECTIONS:
            faults.append(f"{name}: {dotted.lower()} is a section; set its keys, such as {name}{ENV_NEST}…")
            continue
        meant = nearest(dotted)
        faults.append(f"{name}: no such setting" + (f"; did you mean {meant.variable}?" if meant else ""))
    # A variable that is set to nothing counts as not set: EnvironmentFile= and containers leave such behind.
    return "environment", {} if unknown else _Environment(Settings, env_ignore_empty=True)()


def _flatten(found: Mapping[str, Any], source: str, faults: list[str]) -> dict[str, Any]:
    """Dotted keys of one source; unknown ones go to ``faults``, without the value: it may be a secret."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if name not in SECTIONS or value is None:
            flat[name] = value
        elif isinstance(value, Mapping):
            flat.update({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            faults.append(f"{name} (from {source}): must be a section, [{name}], with its keys below")
    flat = {name: value for name, value in flat.items() if value is not None}
    for name in [name for name in flat if name not in KEYS]:
        meant = nearest(name)
        place = f" (from {source})" if source else ""
        faults.append(f"{name}{place}: no such setting" + (f"; did you mean {meant.name}?" if meant else ""))
        del flat[name]
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, key = name.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def _faults(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """One line for each key with a wrong value."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in item["loc"][: 2 if item["loc"][0] in SECTIONS else 1]]
        context = item.get("ctx", {})
        conflict = item["type"] == "edged_conflict"
        key = KEYS[".".join([*path, context["field"]] if conflict else path)]
        value = values.get(key.name, key.default)
        shown = "is not set"
        if value is not None:
            shown = f"= {brief(key.shown(value))} (from {origins[key.name]})"
        must = item["msg"] if conflict else f"must be {key.allowed}"
        if item["type"] == "value_error":
            must += f" ({context['error']})"
        lines.setdefault(key.name, f"{key.name} {shown}: {must}")
    return list(lines.values())
