"""A fault as a value: what is wrong, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something that is wrong now. Programs compare `code`; `message` and `hint` are for people.

    `hint` says what to do about it; it is empty where the message already says so or nothing can be done.
    """

    code: str
    message: str
    hint: str = ""
