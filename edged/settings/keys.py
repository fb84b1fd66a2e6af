"""Every key of the settings by its dotted name: meaning, allowed values, and whether it is a secret."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from edged.settings.model import ENV_NEST, ENV_PREFIX, Settings

MASK = "********"


@dataclass(frozen=True)
class Key:
    """One key, such as ``mqtt.port``."""

    name: str
    description: str
    allowed: str
    default: Any
    example: Any
    secret: bool

    @property
    def variable(self) -> str:
        """The key's environment variable."""
        return ENV_PREFIX + self.name.replace(".", ENV_NEST).upper()

    @property
    def flag(self) -> str:
        """The key's flag on the command line."""
        return "--" + self.name.replace(".", "-").replace("_", "-")

    def shown(self, value: Any) -> Any:
        """The value for display, of a JSON type: a secret is masked, a path is text."""
        if value is None:
            return None
        if self.secret or isinstance(value, SecretStr):
            return MASK
        return str(value) if isinstance(value, Path) else value


def _sections() -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[name] = field.annotation
    return found


SECTIONS: dict[str, type[BaseModel]] = _sections()


def _keys() -> dict[str, Key]:
    owners: list[tuple[str, type[BaseModel]]] = [("", Settings)]
    owners += [(f"{section}.", model) for section, model in SECTIONS.items()]
    found = {}
    for prefix, model in owners:
        schemas = model.model_json_schema()["properties"]
        for short, field in model.model_fields.items():
            if prefix + short in SECTIONS:
                continue
            schema, default = schemas[short], field.get_default()
            found[prefix + short] = Key(
                name=prefix + short,
                description=str(field.description),
                allowed=allowed(schema),
                default=default,
                example=field.examples[0] if field.examples else default,
                secret="SecretStr" in str(field.annotation),
            )
    return found


def allowed(schema: dict[str, Any]) -> str:
    """The allowed values of a JSON schema, in words; its own `allowed` where it has one."""
    if "allowed" in schema:
        return str(schema["allowed"])
    if "anyOf" in schema:
        return " or ".join(allowed(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        *most, last = [f'"{choice}"' for choice in schema["enum"]]
        return f"{', '.join(most)} or {last}" if most else last
    if "const" in schema:
        return f'"{schema["const"]}"'
    kind = schema.get("type")
    if kind == "integer":
        return f"a whole number from {schema['minimum']} to {schema['maximum']}"
    if kind == "number":
        return f"a number from {schema['minimum']:g} to {schema['maximum']:g}"
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return f"a list of {allowed(schema['items'])}"
    return "a path" if schema.get("format") == "path" else "text that is not empty"


KEYS: dict[str, Key] = _keys()


def nearest(name: str) -> Key | None:
    """The known key that is most similar to an unknown one; None if none is."""
    # The likeliest slip is EDGED_MQTT_HOST for EDGED_MQTT__HOST: dots count as underscores here.
    plain = {key.replace(".", "_"): key for key in KEYS}
    close = difflib.get_close_matches(name.lower().replace(".", "_"), plain, n=1, cutoff=0.75)
    if close:
        return KEYS[plain[close[0]]]
    last = {key.rpartition(".")[2]: key for key in reversed(KEYS)}
    close = difflib.get_close_matches(name.lower().rpartition(".")[2], last, n=1, cutoff=0.75)
    return KEYS[last[close[0]]] if close else None


def brief(value: Any) -> str:
    """A value as an error shows it, in 80 characters at most."""
    text = value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:79] + "…"
