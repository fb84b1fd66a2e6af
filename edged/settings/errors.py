"""The exception for wrong settings."""

from __future__ import annotations


class SettingsError(Exception):
    """A setting that only a person can correct; the message is one line and never holds a secret."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return "cannot be read: not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
