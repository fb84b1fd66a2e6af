"""What a device remembers of rollouts over restarts: one small file, written atomically before anything is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged.checked_json import DamagedError, expect_format, form_expected, read_checked, write_checked
from edged.faults import Fault
from edged.rollout.desired import RefusedError, check_desired
from edged.rollout.execution import Baseline, Execution, Package, State, Step
from edged.rollout.precedence import Documents, Known

FILE = "rollout.json"
"""In state_dir."""
_FORMAT = 1
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Memory:
    """The documents that are known, the rollout that is followed, and the package that was served before it."""

    documents: Documents = Documents()  # noqa: RUF009  (frozen)
    execution: Execution | None = None
    former: Package | None = None


def write_memory(path: Path, memory: Memory) -> None:
    """Replace the file durably. Raises OSError."""
    fields = {
        "format": _FORMAT,
        "known": {target: _known_fields(known) for target, known in memory.documents.known.items()},
        "aborted": list(memory.documents.aborted),
        "execution": None if memory.execution is None else _execution_fields(memory.execution),
        "former": None if memory.former is None else asdict(memory.former),
    }
    write_checked(path, fields)


def read_memory(path: Path) -> Memory:
    """Read the file; an empty memory where there is none. Raises DamagedError, and OSError as open does."""
    fields = read_checked(path, _MOST_BYTES)
    if fields is None:
        return Memory()
    with form_expected():
        expect_format(fields, _FORMAT)
        known = {target: _known(target, one) for target, one in fields["known"].items()}
        return Memory(
            Documents(known, tuple(fields["aborted"])),
            None if fields["execution"] is None else _execution(fields["execution"]),
            None if fields["former"] is None else Package(**fields["former"]),
        )


def _known_fields(known: Known) -> dict[str, Any]:
    return {"document": dict(known.received.document), "percent": known.percent, "present": known.present}


def _known(target: str, fields: dict[str, Any]) -> Known:
    try:
        received = check_desired(fields["document"], target)
    except RefusedError as error:
        raise DamagedError(f"a document in it is not one of this version: {error}") from None
    return Known(received, fields["percent"], fields["present"])


def _execution_fields(execution: Execution) -> dict[str, Any]:
    return {
        "target": execution.known.received.target,
        "known": _known_fields(execution.known),
        "state": execution.state.value,
        "step": None if execution.step is None else execution.step.value,
        "since": execution.since,
        "seconds": execution.seconds,
        "failures": execution.failures,
        "loads": execution.loads,
        "baseline": asdict(execution.baseline),
        "proved": execution.proved,
        "speed": execution.speed,
        "fault": None if execution.fault is None else asdict(execution.fault),
        "candidate": execution.candidate,
        "proves": execution.proves,
    }


def _execution(fields: dict[str, Any]) -> Execution:
    step, fault = fields["step"], fields["fault"]
    # An earlier edged wrote none of what get() reads.
    baseline = fields.get("baseline", asdict(Baseline()))
    return Execution(
        _known(fields["target"], fields["known"]),
        State(fields["state"]),
        None if step is None else Step(step),
        since=fields["since"],
        seconds=fields["seconds"],
        failures=fields["failures"],
        loads=fields["loads"],
        baseline=Baseline(baseline["step_seconds"], tuple(baseline["strains"])),
        proved=fields.get("proved", 0.0),
        speed=fields.get("speed"),
        fault=None if fault is None else Fault(**fault),
        candidate=fields["candidate"],
        proves=fields.get("proves", True),
    )
