"""Types, bounds and checks that several sections of the settings share."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

ID_ALLOWED = "1 to 64 characters out of A-Z a-z 0-9 . _ -"
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", json_schema_extra={"allowed": ID_ALLOWED})]


def address(host: str, port: int) -> str:
    """``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(text: str) -> tuple[str, int | None]:
    """Host and port of ``host``, ``host:port``, an IPv6 address or ``[IPv6]:port``; the port is None without one.

    Raises ValueError.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return str(ipaddress.IPv6Address(text)), None
    six, host, port = found.groups()
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError(f"{port} is no port")
    return str(ipaddress.IPv6Address(six)) if six else host, None if port is None else int(port)


_ADDRESS = re.compile(r"(?:\[([^\]]*)\]|([^\s/@:\[\]]{1,255}))(?::([0-9]{1,5}))?")


def _without_port(value: str) -> str:
    """Refuse a colon outside an IPv6 address, which has no brackets here."""
    if ":" in value:
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            raise ValueError("the port has a key of its own, and an IPv6 address no brackets") from None
    return value


Host = Annotated[
    str,
    Field(
        pattern=r"^[^\s/@]{1,255}$",
        json_schema_extra={"allowed": "a host name or an address, without scheme, user or port"},
    ),
    AfterValidator(_without_port),
]


def _broker(value: str) -> str:
    try:
        split_address(value)
    except ValueError:
        raise ValueError("a port is 1 to 65535, and an IPv6 address before a port has brackets") from None
    return value


Broker = Annotated[str, AfterValidator(_broker)]


def split_list(value: Any) -> Any:
    """Split a list in an environment variable, ``a,b``. One in JSON is decoded by the source already."""
    if not isinstance(value, str) or value == "auto":
        return value
    if value.lstrip().startswith("["):
        raise ValueError("not a JSON list")
    return [part.strip() for part in value.split(",")]


def no_duplicates(value: Any) -> Any:
    if isinstance(value, list) and any(value.count(item) > 1 for item in value):
        raise ValueError("a name stands there twice")
    return value


def numbers_are_not_flags(cls: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """Refuse booleans for numbers: pydantic would read ``port = true`` as 1."""
    if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
        raise ValueError("true or false is not a value here")
    return value


def conflict(field: str, reason: str) -> PydanticCustomError:
    """An error between several keys of a section, reported for ``field``."""
    return PydanticCustomError("edged_conflict", "{reason}", {"field": field, "reason": reason})


class Section(BaseModel):
    """A section: no unknown keys, no changes, and no values in error messages."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    check_flags = field_validator("*", mode="before")(classmethod(numbers_are_not_flags))
