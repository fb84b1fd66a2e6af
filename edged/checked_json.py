"""Small JSON files of edged's own: with a checksum, replaced atomically, and told where they are damaged."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edged.durable import write_durably
from edged.strict_json import canonical


class DamagedError(ValueError):
    """The file is not as it was written, or of a newer edged."""


def checksum_of(fields: Mapping[str, Any]) -> int:
    """CRC-32 of a JSON object, whatever the order of its fields."""
    return zlib.crc32(canonical(fields).encode("utf-8", "surrogatepass"))


def checked_text(fields: Mapping[str, Any], indent: int | None = None) -> str:
    """The object as JSON, with `crc32` over all other fields."""
    return json.dumps({**fields, "crc32": checksum_of(fields)}, ensure_ascii=False, indent=indent) + "\n"


def parse_checked(text: bytes) -> dict[str, Any]:
    """The object without its `crc32`. Raises DamagedError."""
    with form_expected():
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("crc32") != checksum_of(fields):
            raise DamagedError("its content does not have its checksum")
        return fields


def write_checked(path: Path, fields: Mapping[str, Any]) -> None:
    """Replace the file durably. Raises OSError."""
    write_durably(path, checked_text(fields))


def read_checked(path: Path, most_bytes: int) -> dict[str, Any] | None:
    """Read the file; None where there is none. Raises DamagedError, and OSError as open does."""
    try:
        with path.open("rb") as file:
            text = file.read(most_bytes + 1)
    except FileNotFoundError:
        return None
    if len(text) > most_bytes:
        raise DamagedError(f"it is larger than {most_bytes} bytes")
    return parse_checked(text)


@contextmanager
def form_expected() -> Iterator[None]:
    """Fields that are missing or of another type inside are damage. Raises DamagedError."""
    try:
        yield
    except DamagedError:
        raise
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise DamagedError(f"it is not in its form: {error!r}"[:200]) from None


def expect_format(fields: Mapping[str, Any], known: int) -> None:
    """Raises DamagedError where another edged wrote the object in another `format`, KeyError where it has none."""
    if fields["format"] != known:
        raise DamagedError(f"it has format {fields['format']}, and this edged knows format {known}")
