"""The topics of a device, and the names that are allowed in them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edged.settings.mqtt import DEFAULT_ROOT

ID_PATTERN = r"[A-Za-z0-9._-]{1,64}"
"""Pattern of the ids of devices, groups and jobs."""
ID_ALLOWED = "1 to 64 characters out of A-Z a-z 0-9 . _ -"

MAX_REPLY_TOPIC_BYTES = 512
MAX_CORRELATION_BYTES = 1024

_ID = re.compile(ID_PATTERN)


def is_id(text: str) -> bool:
    """Whether `text` may be the id of a device, a group or a job."""
    return _ID.fullmatch(text) is not None


def family(topic: str) -> str:
    """What a broker's rights tell apart: a topic, but all streams of a device are one."""
    head, _, _job = topic.rpartition("/")
    above, _, channel = head.rpartition("/")
    return head if channel == "stream" and above.rpartition("/")[0].endswith("/device") else topic


Kind: TypeAlias = Literal["job", "cancel", "status", "desired", "command", "ping", "pong", "offer", "give", "given"]
_GROUP_KINDS: dict[str, Kind] = {"cancel": "cancel", "desired": "desired", "ping": "ping", "pong": "pong"}


@dataclass(frozen=True, slots=True)
class Channel:
    """What arrives on a topic: its kind, the filter of the subscription, and the group (None: this device alone)."""

    kind: Kind
    topic_filter: str
    group: str | None = None
    member: str | None = None
    """The device that an offer, a give or its answer belongs to."""


def fleet_check(root: str, client: str) -> str:
    """Topic on which a client that looks at the fleet writes to itself, to learn that the broker has delivered all."""
    return f"{root}/fleet/{client}/check"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one device under `root` (such as `edged/v1`)."""

    root: str
    device: str

    def _own(self, channel: str) -> str:
        return f"{self.root}/device/{self.device}/{channel}"

    @property
    def job(self) -> str:
        return self._own("job")

    @property
    def cancel(self) -> str:
        return self._own("cancel")

    @property
    def status(self) -> str:
        return self._own("status")

    @property
    def discovery_id(self) -> str:
        """The device's name for Home Assistant, which allows no dots there; one for each root and device."""
        name = self.device.replace(".", "_")
        if name == self.device and self.root == DEFAULT_ROOT:
            return f"edged-{name}"
        return f"edged-{name}-{hashlib.sha256(f'{self.root}/{self.device}'.encode()).hexdigest()[:8]}"

    def discovery(self, prefix: str) -> str:
        """Topic of the document by which Home Assistant finds the device."""
        return f"{prefix}/device/{self.discovery_id}/config"

    @property
    def info(self) -> str:
        return self._own("info")

    @property
    def health(self) -> str:
        return self._own("health")

    @property
    def desired(self) -> str:
        """What the device is told to serve (rollout/)."""
        return self._own("desired")

    @property
    def reported(self) -> str:
        """How far the device is with that."""
        return self._own("reported")

    def command(self, name: str, id: str) -> str:
        """Where a command for this device stands, and where it answers (commands/)."""
        return self._own(f"cmd/{name}/{id}")

    @property
    def bridge(self) -> str:
        """Whether the bridge beside the device stands (deploy/mosquitto/bridge.conf), which retains it."""
        return self._own("bridge")

    @property
    def check(self) -> str:
        """Carries nothing but the trial of shared subscriptions (group_check.py)."""
        return self._own("check")

    def event(self, job: str) -> str:
        return self._own(f"event/{job}")

    def result(self, job: str) -> str:
        return self._own(f"result/{job}")

    def stream(self, job: str) -> str:
        return self._own(f"stream/{job}")

    def group_job(self, group: str) -> str:
        """Shared subscription: each job goes to one device of the group (MQTT 5 §4.8.2)."""
        return f"$share/{group}/{self.root}/group/{group}/job"

    def group_model_job(self, group: str, model: str) -> str:
        """The same for jobs that name their model: each goes to one device of the group that serves it."""
        return f"$share/{group}/{self.root}/group/{group}/model/{model}/job"

    def group_cancel(self, group: str) -> str:
        """Not shared: a cancel goes to every device, since any of them may have the job."""
        return f"{self.root}/group/{group}/cancel"

    def group_desired(self, group: str) -> str:
        """What all devices of the group are told to serve."""
        return f"{self.root}/group/{group}/desired"

    def group_command(self, group: str, name: str, id: str) -> str:
        """Where a command for all devices of the group stands."""
        return f"{self.root}/group/{group}/cmd/{name}/{id}"

    def group_ping(self, group: str) -> str:
        """A device that cannot serve asks here whether another one of the group does."""
        return f"{self.root}/group/{group}/ping"

    def group_pong(self, group: str) -> str:
        """Devices that serve answer here."""
        return f"{self.root}/group/{group}/pong"

    def group_offer(self, group: str, member: str) -> str:
        """A member with a free row says so here (sharing/)."""
        return f"{self.root}/group/{group}/offer/{member}"

    def group_give(self, group: str, member: str) -> str:
        """Others give waiting jobs to this member here."""
        return f"{self.root}/group/{group}/give/{member}"

    def group_given(self, group: str, member: str) -> str:
        """This member hears here what became of the jobs that it gives."""
        return f"{self.root}/group/{group}/given/{member}"

    @property
    def reply_prefix(self) -> str:
        return f"{self.root}/reply/"

    def channel(self, topic: str) -> Channel | None:
        """What arrives on `topic`; None for an unknown topic."""
        own: dict[str, Kind] = {self.job: "job", self.cancel: "cancel", self.status: "status", self.desired: "desired"}
        if (kind := own.get(topic)) is not None:
            return Channel(kind, topic)
        match topic.removeprefix(self._own("cmd/")).split("/"):
            case [name, id] if is_id(name) and is_id(id) and topic == self.command(name, id):
                return Channel("command", self.command("+", "+"))
        prefix = f"{self.root}/group/"
        if not topic.startswith(prefix):
            return None
        match topic[len(prefix) :].split("/"):
            case [group, "job"] | [group, "model", _, "job"]:
                return Channel("job", f"$share/{group}/{topic}", group)
            case [group, named] if named in _GROUP_KINDS:
                return Channel(_GROUP_KINDS[named], topic, group)
            case [group, "cmd", name, id] if is_id(name) and is_id(id):
                return Channel("command", self.group_command(group, "+", "+"), group)
            case [group, ("give" | "given") as kind, member]:
                return Channel(kind, topic, group, member)
            case [group, "offer", member]:
                return Channel("offer", self.group_offer(group, "+"), group, member)
        return None

    def reply_refusal(self, topic: str, correlation: bytes | None = None) -> str | None:
        """Why a Response Topic (MQTT 5 §3.3.2.3.5) cannot be answered with this Correlation Data; None if it can."""
        prefix = self.reply_prefix
        if not topic.startswith(prefix):
            return f"the Response Topic must lie under {prefix}, and {_shown(topic)} does not"
        if topic == prefix:
            return f"the Response Topic needs a name after {prefix}, such as {prefix}my-client"
        if "+" in topic or "#" in topic:
            return f"the Response Topic must name one topic, without the wildcards + and #: {_shown(topic)}"
        if "\0" in topic:
            return f"the Response Topic must not contain NUL: {_shown(topic)}"
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            return f"the Response Topic must be valid UTF-8: {_shown(topic)}"
        if size > MAX_REPLY_TOPIC_BYTES:
            return f"the Response Topic is {size} bytes long; at most {MAX_REPLY_TOPIC_BYTES} are allowed"
        if len(correlation or b"") > MAX_CORRELATION_BYTES:
            size = len(correlation or b"")
            return f"the Correlation Data is {size} bytes long; at most {MAX_CORRELATION_BYTES} are allowed"
        return None


def _shown(topic: str) -> str:
    """`topic` for an error message: quoted, escaped, shortened."""
    return ascii(topic if len(topic) <= 120 else topic[:117] + "...")
