"""Tests use what is public: every access to a private name of the code is listed here with its reason."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
MOST = 20

ALLOWED: dict[str, tuple[int, str]] = {
    "broker/paced_edged.py": (2, "holds the engine between two steps; nothing public stands there"),
    "broker/test_attempts.py": (1, "a status from a broker that is not there"),
    "unit/spool_rig.py": (1, "SQLite's settings of a connection exist on that connection alone"),
    "unit/test_clock.py": (3, "the system call, with other answers than this kernel's, and the structure it fills"),
    "unit/test_doctor.py": (1, "a C library that this machine does not have"),
    "unit/test_id_index.py": (3, "sizes at which it sorts in, small enough for a test to pass them often"),
}
"""File, number of accesses, reason."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def accesses(tree: ast.Module) -> int:
    """Private attributes of other objects, private names that are imported, and those that monkeypatch replaces."""
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of_its_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            count += not of_its_own
        elif isinstance(node, ast.ImportFrom):
            count += sum(is_private(alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            count += any(isinstance(arg, ast.Constant) and is_private(str(arg.value)) for arg in node.args[1:2])
    return count


def test_private_names_are_used_where_it_is_said_why() -> None:
    found = Counter(
        {
            str(path.relative_to(TESTS)): accesses(ast.parse(path.read_text(encoding="utf-8")))
            for folder in ("unit", "broker", "faults")
            for path in sorted((TESTS / folder).glob("*.py"))
        }
    )
    assert {name: count for name, count in found.items() if count} == {name: n for name, (n, _) in ALLOWED.items()}
    assert sum(count for count, _ in ALLOWED.values()) < MOST
