"""A job on its way through the preparer and the engine, and what the dispatch needs of these two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edged.engine.loaded_model import LoadedModel
from edged.engine.sequence import Request
from edged.jobs.document import Job
from edged.jobs.records import Queued
from edged.jobs.results import Reason


class JobEngine(Protocol):
    """The part of the engine that is needed."""

    def submit(self, request: Request) -> None:
        """Run a request."""

    def cancel(self, key: int) -> None:
        """End a request."""


class JobPreparer(Protocol):
    """The part of the preparer that is needed."""

    def submit(self, job: Job, number: int, id: str, loaded: LoadedModel, received: float) -> None:
        """Turn a job into a request; its Prepared comes later."""


@dataclass
class Active:
    """A job that is being prepared or that the engine has."""

    queued: Queued
    job: Job
    rank: float
    waited: float = 0.0
    """Seconds from receipt to its row."""
    started: bool = False
    """It has a row."""
    recalled: bool = False
    """Cancelled in the engine, before it had a row, in favour of a more urgent job: it will wait again."""
    stopping: Reason | None = None
    """Why it ends at its next step."""
