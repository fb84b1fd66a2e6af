"""Shows the settings: the effective ones with their origins, and the commented example file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edged.settings.keys import KEYS, SECTIONS, Key
from edged.settings.sources import Loaded

_HEAD = """\
# edged.toml: the settings of edged. Every line is commented out; a key that is not set has its default.
# Read from /etc/edged/edged.toml, or from the file after --config. An environment variable is stronger
# (EDGED_MQTT__HOST for host in [mqtt]), and a flag is stronger still. A rollout can set a few keys, which go before
# this file (docs/fleet.md). `edged config` shows what holds.
"""


def describe(loaded: Loaded) -> list[tuple[str, Any, str, str]]:
    """Key, value for display (a JSON type, secrets masked), origin and description of every setting."""
    rows = []
    for name, key in KEYS.items():
        rows.append((name, key.shown(loaded.value(name)), loaded.origins[name], key.description))
    return rows


def example_toml() -> str:
    """The example file, made from the model."""
    lines = [_HEAD]
    lines += [_entry(key) for name, key in KEYS.items() if "." not in name]
    for section, model in SECTIONS.items():
        lines.append(f"# {model.__doc__}\n[{section}]\n")
        lines += [_entry(key) for name, key in KEYS.items() if name.startswith(f"{section}.")]
    return "\n".join(lines)


def _entry(key: Key) -> str:
    default = "not set" if key.default is None else _toml(key.default)
    short = key.name.rpartition(".")[2]
    about = f"# {key.description}\n# Allowed: {key.allowed}. Default: {default}."
    return f"{about}\n#{short} = {_toml(key.example)}\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + "}"
    # What else settings hold (text, whole numbers, true and false, lists of text) looks the same in TOML and JSON.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
