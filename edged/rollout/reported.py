"""The reported document: what the device serves, and how far it is with what it is told to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edged.faults import Fault
from edged.machine.clock import format_time
from edged.rollout.execution import Execution, Package, State


@dataclass(frozen=True)
class Refused:
    """A document that is not followed. `rollout`, `sequence`: None where it could not be read."""

    target: str
    fault: Fault
    rollout: str | None = None
    sequence: int | None = None


def reported_document(
    device: str,
    execution: Execution | None,
    step: str | None,
    progress: float | None,
    serving: Package | None,
    former: Package | None,
    refused: Iterable[Refused],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The document but for its time.

    `step`: what the device does now, `progress`: share of its download or trial, `settings`: reported_settings().
    """
    known = None if execution is None else execution.known
    return {
        "device": device,
        "state": None if execution is None else execution.state.value,
        "step": step,
        "progress": progress,
        "waiting_for": None if execution is None else execution.waiting_for,
        "since": None if execution is None else format_time(execution.since),
        "failures": 0 if execution is None else execution.failures,
        "speed": None if execution is None else execution.speed,
        "fault": None if execution is None else _fault(execution.fault),
        "rollout": None if known is None else known.received.desired.rollout,
        "sequence": None if known is None else known.sequence,
        "target": None if known is None else known.received.target,
        "percent": None if known is None else known.percent,
        "model": _package(serving),
        "before": _package(former),
        "settings": settings,
        "refused": [
            {
                "target": one.target,
                "rollout": one.rollout,
                "sequence": one.sequence,
                "state": State.REJECTED.value,
                "fault": _fault(one.fault),
            }
            for one in refused
        ],
        "desired": None if known is None else dict(known.received.document),
    }


def _fault(fault: Fault | None) -> Mapping[str, str] | None:
    return None if fault is None else asdict(fault)


def _package(package: Package | None) -> Mapping[str, str | None] | None:
    return None if package is None else asdict(package)
