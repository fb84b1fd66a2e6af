"""Where a pulled package came from, as it lies beside its files."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edged.durable import write_durably

ORIGIN = "origin.json"
_MOST_BYTES = 1 << 16


class Origin(BaseModel):
    """The document in a pulled package's origin.json; times are RFC 3339 in UTC."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    source: str
    content: str
    pulled_at: str
    verified_at: str | None = None
    """When its known answers were last right, at a pull or a selection; None: never compared."""


def read_origin(folder: Path) -> Origin | None:
    """The origin of the package in `folder`, None if it is not recorded."""
    try:
        path = folder / ORIGIN
        if path.stat().st_size > _MOST_BYTES:
            return None
        return Origin.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def write_origin(folder: Path, origin: Origin) -> None:
    """Write origin.json, atomically and durably. Raises OSError."""
    write_durably(folder / ORIGIN, json.dumps(origin.model_dump(), ensure_ascii=False) + "\n")
