"""The groups of a device at the broker: what it subscribes to for them, and what their devices tell each other."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import structlog

from edged.mqtt.events import GroupPing, GroupPong, ReceivedMessage, ShareReceived
from edged.mqtt.session_types import Subscription
from edged.mqtt.topics import Channel, Topics, is_id

MAX_WORD_BYTES = 1024
"""The largest ping or pong that is read."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Membership:
    """What the device wants of its groups. The default is that of a start.

    `left`: groups whose jobs it does not take. `model`: jobs that name it are taken on a topic of their own; None: no
    such topic. `asking`: whether it wants to hear which devices of its groups serve.
    """

    left: frozenset[str] = frozenset()
    model: str | None = None
    asking: bool = False
    shares_load: bool = False
    """Whether it gives waiting jobs to other devices of its groups, and takes theirs."""
    listening: bool = False
    """Whether it wants to hear which of them have a free row."""


class GroupTopics:
    """What the two connections subscribe to, as the membership is now."""

    def __init__(self, topics: Topics, groups: Sequence[str]) -> None:
        self.names = tuple(dict.fromkeys(groups))
        self.membership = Membership()
        self._topics = topics

    def for_jobs(self) -> list[list[Subscription]]:
        """What the job connection subscribes to."""
        topics, model = self._topics, self.membership.model
        joined = [group for group in self.names if group not in self.membership.left]
        required = [topics.job, *(topics.group_job(group) for group in joined)]
        found = [[Subscription(topic, qos=1, purpose="jobs", required=True) for topic in required]]
        if model is not None and is_id(model):
            named = [topics.group_model_job(group, model) for group in joined]
            found.append([Subscription(topic, qos=1, purpose="jobs that name their model") for topic in named])
        return found

    def for_control(self) -> list[list[Subscription]]:
        """What the control connection subscribes to."""
        topics, groups = self._topics, self.names
        # Status first: a broker answers in order, so that when the second SUBSCRIBE is answered, the retained status
        # has come if there is one.
        found = [[Subscription(topics.status, qos=0, purpose="status documents", retained=True)]]
        cancels = [topics.cancel, *(topics.group_cancel(group) for group in groups)]
        found.append([Subscription(topic, qos=1, purpose="cancels") for topic in cancels])
        desired = [topics.desired, *(topics.group_desired(group) for group in groups)]
        found.append([Subscription(topic, qos=1, purpose="desired documents", retained=True) for topic in desired])
        commands = [topics.command("+", "+"), *(topics.group_command(group, "+", "+") for group in groups)]
        found.append([Subscription(topic, qos=1, purpose="commands", retained=True) for topic in commands])
        pings = [topics.group_ping(group) for group in groups]
        found.append([Subscription(topic, qos=0, purpose="questions of other devices") for topic in pings])
        pongs = [topics.group_pong(group) for group in groups if self.membership.asking]
        found.append([Subscription(topic, qos=0, purpose="answers of other devices") for topic in pongs])
        found.append([Subscription(topic, qos=1, purpose="jobs of other devices") for topic in self._shares()])
        offers = [topics.group_offer(group, "+") for group in groups if self.membership.listening]
        found.append([Subscription(topic, qos=0, purpose="offers of other devices", retained=True) for topic in offers])
        return found

    def _shares(self) -> list[str]:
        names, topics, device = self.names if self.membership.shares_load else (), self._topics, self._topics.device
        return [topic(group, device) for group in names for topic in (topics.group_give, topics.group_given)]

    def taken(self, refused: Collection[str]) -> dict[str, bool]:
        """Whether the device takes the jobs of each group. `refused`: topic filters that the broker refused."""
        left = self.membership.left
        return {group: group not in left and self._topics.group_job(group) not in refused for group in self.names}

    def leave_if_former(self, message: ReceivedMessage, channel: Channel) -> None:
        """Unsubscribe from what an earlier run left in the broker's session: another group, or another model."""
        group, topic, model = channel.group, channel.topic_filter, self.membership.model
        if group is None:
            return
        if group not in self.names:
            _log.warning("mqtt_group_left", group=group, topic=topic)
        elif channel.kind == "job" and topic != self._topics.group_job(group):
            if model is not None and topic == self._topics.group_model_job(group, model):
                return
            _log.info("mqtt_model_left", group=group, topic=topic)
        else:
            return
        message.receipt.session.unsubscribe(topic)

    def read_share(self, message: ReceivedMessage, channel: Channel) -> ShareReceived | None:
        """What another member says of waiting jobs; None, and unsubscribed, where this one does not share its load."""
        group, member = channel.group, channel.member
        if not self.membership.shares_load or group not in self.names:
            message.receipt.session.unsubscribe(channel.topic_filter)
            return None
        if member is None or channel.kind not in ("offer", "give", "given"):
            return None
        return ShareReceived(channel.kind, group, member, message)

    def word(self, nonce: str) -> bytes:
        """The payload of a ping or a pong."""
        return json.dumps({"device": self._topics.device, "nonce": nonce}).encode()

    def read_word(self, message: ReceivedMessage, channel: Channel) -> GroupPing | GroupPong | None:
        """What another device says; None for our own words, and for what is none."""
        if channel.group not in self.names or len(message.payload) > MAX_WORD_BYTES:
            return None
        try:
            document = json.loads(message.payload)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        sender, nonce = document.get("device"), document.get("nonce")
        if not isinstance(sender, str) or not isinstance(nonce, str) or not is_id(nonce):
            return None
        if sender == self._topics.device:
            return None
        return (GroupPing if channel.kind == "ping" else GroupPong)(channel.group, nonce)
