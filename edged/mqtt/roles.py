"""What the device's two connections are to the broker: client ids, subscriptions, last will."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edged.mqtt.connection import Role
from edged.mqtt.groups import GroupTopics
from edged.mqtt.session_types import Will
from edged.mqtt.topics import Topics


def jobs_role(topics: Topics, groups: Sequence[str]) -> Role:
    """The connection `<device>`, which brings jobs."""
    return Role("jobs", topics.device, GroupTopics(topics, groups).for_jobs())


def control_role(topics: Topics, groups: Sequence[str], will_payload: Callable[[], bytes]) -> Role:
    """The connection `<device>-ctl`, which carries everything else."""
    return Role(
        "control",
        f"{topics.device}-ctl",
        GroupTopics(topics, groups).for_control(),
        will=lambda: Will(topics.status, will_payload()),
    )
