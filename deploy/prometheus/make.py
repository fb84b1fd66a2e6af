"""Writes the table of metrics into docs/contract.md, from the table that makes the metrics."""

from __future__ import annotations

import re
from pathlib import Path

from edged.report.metric_table import documentation

CONTRACT = Path(__file__).parents[2] / "docs/contract.md"


def contract() -> str:
    """The page with the table as it should be."""
    text = CONTRACT.read_text(encoding="utf-8")
    head, section = text.split("\n## Metrics\n\n")
    _, rest = re.split(r"(?<=\|\n)\n", section, maxsplit=1)
    return f"{head}\n## Metrics\n\n{documentation()}\n{rest}"


if __name__ == "__main__":
    CONTRACT.write_text(contract(), encoding="utf-8")
