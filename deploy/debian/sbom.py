"""What the package carries, and under which licences: CycloneDX for machines, a table for people."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """A library. `sha256` is its wheel's, None where it was built here."""

    name: str
    version: str
    licence: str
    summary: str
    sha256: str | None

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def parts_of(site: Path, lock: Path) -> list[Part]:
    """The libraries in `site`, by name. Raises ValueError where one names no licence."""
    hashes = dict(re.findall(r"^([a-z0-9-]+)==\S+ --hash=sha256:(\w+)$", lock.read_text(), flags=re.M))
    found = []
    for library in metadata.distributions(path=[str(site)]):
        name = re.sub(r"[-_.]+", "-", library.metadata["Name"]).lower()
        about = library.metadata
        found.append(Part(name, library.version, _licence(about), about["Summary"] or "", hashes.get(name)))
    return sorted(found, key=lambda part: part.name)


def _licence(about: Any) -> str:
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")
    ]
    short = about.get("License", "") if "\n" not in about.get("License", "") else ""
    licence = about.get("License-Expression") or short or " and ".join(classifiers)
    if not licence:
        raise ValueError(f"{about['Name']} names no licence")
    return str(licence)


def bill(parts: list[Part], edged: Part, timestamp: str) -> str:
    """CycloneDX 1.5, the same for the same parts. `timestamp` as RFC 3339."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, repr(parts))}",
        "version": 1,
        "metadata": {"timestamp": timestamp, "component": _component(edged, "application")},
        "components": [_component(part, "library") for part in parts if part is not edged],
    }
    return json.dumps(document, indent=2) + "\n"


def _component(part: Part, kind: str) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": kind,
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "description": part.summary,
        "licenses": [{"license": {"name": part.licence}}],
        "purl": part.purl,
    }
    if part.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    return component


def table(parts: list[Part]) -> str:
    """A line for each part: name, version, licence, what it is."""
    lines = [f"{part.name:20} {part.version:10} {part.licence:36} {part.summary}".rstrip() for part in parts]
    return "\n".join(lines) + "\n"
