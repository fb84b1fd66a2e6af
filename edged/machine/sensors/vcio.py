"""Asks the firmware of a Raspberry Pi, as vcgencmd does: by its mailbox, /dev/vcio."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

Gencmd = Callable[[str], str]
"""The firmware's answer to a command of vcgencmd. Raises OSError."""

_LARGEST = 1024
"""Bytes of a command or an answer."""
_GET_GENCMD_RESULT = 0x00030080
_HEAD = struct.Struct("=6I")
"""Size of the whole, request code, tag, size of the buffer, size of the request, error."""
_PROPERTY = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8
"""_IOWR(100, 0, char *): the ioctl of vcgencmd.c in github.com/raspberrypi/utils."""


def request(command: str) -> bytearray:
    """The message that asks `command`; the answer takes its place. Raises ValueError where it is too long."""
    text = command.encode()
    if len(text) + 1 >= _LARGEST:
        raise ValueError(f"a command of {len(text)} bytes is too long for the firmware")
    size = _HEAD.size + _LARGEST + 4  # with the end tag, a zero
    return bytearray(_HEAD.pack(size, 0, _GET_GENCMD_RESULT, _LARGEST, 0, 0) + text.ljust(_LARGEST + 4, b"\0"))


def answer(message: bytearray) -> str:
    """The text of an answered message. Raises OSError where the firmware refuses the command."""
    error = _HEAD.unpack_from(message)[-1]
    text = bytes(message[_HEAD.size : _HEAD.size + _LARGEST]).split(b"\0")[0].decode("utf-8", "replace").strip()
    if error or text.startswith("error="):
        raise OSError(f"the firmware answers {text or error!r}")
    return text


def gencmd(root: Path = Path("/")) -> Gencmd:
    """A way to ask the firmware behind `root`/dev/vcio, which is opened for each command: root and group video may."""

    def ask(command: str) -> str:
        message = request(command)
        device = os.open(root / "dev/vcio", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _PROPERTY, message)
        finally:
            os.close(device)
        return answer(message)

    return ask
