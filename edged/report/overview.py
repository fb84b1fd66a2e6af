"""What a person wants to know of this device now, as one document: for /status.json, the page and `edged top`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edged import logs
from edged.machine.clock import format_time
from edged.report.history import INTERVAL, History
from edged.status import JobSummary, LatestStatus, Status

Document = dict[str, Any]
LOG_LINES = 20
"""Most warnings and errors of the log that are shown."""


class Overview:
    """Makes the document, on any thread."""

    def __init__(
        self,
        latest: LatestStatus,
        history: History,
        info: Callable[[Status], Document],
        health: Callable[[Status], Document],
    ) -> None:
        """`info` and `health` make the documents that the device publishes over MQTT too."""
        self._latest = latest
        self._history = history
        self._info = info
        self._health = health

    def document(self) -> Document:
        """The device now, the last hour, its latest jobs, and the warnings and errors of its log."""
        status = self._latest.current
        faults = status.ready_faults(time.monotonic())
        return {
            "state": status.state.value,
            "ready": not faults,
            "faults": [asdict(fault) for fault in faults],
            "warnings": [asdict(warning) for warning in status.warnings],
            "info": self._info(status),
            "health": self._health(status),
            "jobs": [_job(job) for job in status.jobs],
            "log": [{**asdict(noted), "time": format_time(noted.time)} for noted in logs.noted()[:LOG_LINES]],
            "history": {"interval_seconds": INTERVAL, **self._history.series()},
        }


def _job(job: JobSummary) -> Document:
    finished = None if job.finished is None else format_time(job.finished)
    return {**asdict(job), "received": format_time(job.received), "finished": finished, "code": job.code or None}
