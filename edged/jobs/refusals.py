"""How the models of a job's document refuse a value."""

from __future__ import annotations

from typing import NoReturn

from pydantic_core import PydanticCustomError


def refuse(field: str, reason: str) -> NoReturn:
    """Refuse a field within a validator: `reason` is what follows its name in the message."""
    raise PydanticCustomError("edged", "{text}", {"text": f"{field} {reason}"})
