"""What the device's two connections are to the broker: client ids, subscriptions, last will."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edged.mqtt.connection import Role
from edged.mqtt.session_types import Subscription, Will
from edged.mqtt.topics import Topics


def jobs_role(topics: Topics, groups: Iterable[str]) -> Role:
    """The connection `<device>`, which brings jobs."""
    wanted = [topics.job, *map(topics.group_job, groups)]
    return Role(
        "jobs", topics.device, [[Subscription(topic, qos=1, purpose="jobs", required=True) for topic in wanted]]
    )


def control_role(topics: Topics, groups: Iterable[str], will_payload: Callable[[], bytes]) -> Role:
    """The connection `<device>-ctl`, which carries everything else."""
    cancels = [topics.cancel, *map(topics.group_cancel, groups)]
    return Role(
        "control",
        f"{topics.device}-ctl",
        # Status first: a broker answers in order, so that when the second group is answered, the retained status has
        # come if there is one.
        [
            [Subscription(topics.status, qos=0, purpose="status documents", retained=True)],
            [Subscription(topic, qos=1, purpose="cancels") for topic in cancels],
        ],
        will=lambda: Will(topics.status, will_payload()),
    )
