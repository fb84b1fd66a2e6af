"""Prints what a test of faults measured."""

from __future__ import annotations

from collections.abc import Mapping


def table(title: str, figures: Mapping[str, float | str]) -> None:
    """One line a figure; names that begin with RSS are bytes."""
    print(f"\n{title}")
    for name, value in figures.items():
        shown = f"{value / 2**20:.1f} MiB" if name.startswith("RSS") and not isinstance(value, str) else f"{value}"
        print(f"  {name:<64} {shown}")
