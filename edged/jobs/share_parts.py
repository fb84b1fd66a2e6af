"""What the parts of load sharing use of the job life."""

from __future__ import annotations

from dataclasses import dataclass

from edged.jobs.admission import Admission
from edged.jobs.committer import Committer
from edged.jobs.dispatch import Dispatch
from edged.jobs.expiry import JobTimes
from edged.jobs.intake import Intake
from edged.jobs.outbox import Outbox
from edged.jobs.spool import Spool
from edged.mqtt.topics import Topics
from edged.report.metrics import Metrics


@dataclass(frozen=True)
class ShareParts:
    """Of one device. `max_bytes`: of a job document."""

    device: str
    topics: Topics
    spool: Spool
    dispatch: Dispatch
    committer: Committer
    admission: Admission
    intake: Intake
    outbox: Outbox
    times: JobTimes
    metrics: Metrics
    max_bytes: int
