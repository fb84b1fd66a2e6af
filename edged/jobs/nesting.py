"""How deep the JSON of a job may be nested."""

from __future__ import annotations

MAX_DEPTH = 64
"""Levels of nesting. Far below what json and pydantic survive, which differs with how deep the stack is already: what
was accepted once must be readable for ever."""


def deeper_than(document: object, levels: int) -> bool:
    """Whether `document` has more levels; level by level, since recursion is what is to be feared."""
    level = [document]
    for _ in range(levels):
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True
