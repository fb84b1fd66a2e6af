"""Where a sender publishes a job and its repeats (pure): a group's job goes to the group first, then to one member.

The broker gives a group's jobs to its devices in turn, dead ones among them. What retained documents say of the members
finds one that is ready.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from edged.mqtt.topics import is_id

MOST = 10_000
"""Devices that are remembered."""


class Route:
    """The topics of one job."""

    def __init__(self, devices: str, target: str, group: str | None, model: object) -> None:
        """`devices`: the topics' prefix before a device's id. `target`: the same of the device or group asked for.

        `model`: the one that the job names.
        """
        self._devices = devices
        self._group = group
        self._model = model
        self._plain = f"{target}/job"
        named = group is not None and isinstance(model, str) and is_id(model)
        self._first = f"{target}/model/{model}/job" if named else self._plain
        self._sent = False
        self._reaches_members = group is not None
        self._documents: dict[str, dict[str, Mapping[str, Any]]] = {}
        self._asked: set[str] = set()
        self._has: str | None = None

    def next(self) -> str:
        """The topic to publish on now: the member that accepted the job, else one that is ready, is asked once each."""
        if not (self._sent and self._reaches_members):
            return self._first
        if self._has is not None and self._has not in self._asked:
            return self._topic(self._has)
        ready = [device for device in self._documents if device not in self._asked and self._is_ready(device)]
        return self._topic(random.choice(ready)) if ready else self._first  # not all senders to one

    def sent(self, topic: str) -> None:
        """The job was published there."""
        self._sent = True
        if topic in (self._first, self._plain):
            self._asked.clear()
        else:
            self._asked.add(topic.split("/")[-2])

    def refused(self, topic: str) -> bool:
        """The broker does not let this sender publish there; whether another topic is left to try."""
        if topic not in (self._first, self._plain):
            self._reaches_members = False
            return True
        left, self._first = self._first != self._plain, self._plain  # the role that an earlier provision.py made
        return left

    def nobody(self, topic: str) -> bool:
        """Nobody is subscribed to that topic; whether this is so of the whole group."""
        return self._group is not None and topic in (self._first, self._plain)

    def heard(self, device: str, kind: str, document: Mapping[str, Any]) -> None:
        """The newest `status` or `info` of a device; empty where it was removed."""
        if device in self._documents or len(self._documents) < MOST:
            self._documents.setdefault(device, {})[kind] = document

    def accepted(self, device: object) -> None:
        """A device said that it has the job."""
        if isinstance(device, str) and is_id(device) and device != self._has:
            self._has = device
            self._asked.discard(device)

    def _topic(self, device: str) -> str:
        return f"{self._devices}/{device}/job"

    def _is_ready(self, device: str) -> bool:
        documents = self._documents[device]
        status, model = documents.get("status", {}), documents.get("info", {}).get("model")
        groups = status.get("groups")
        serves = self._model is None or (isinstance(model, dict) and model.get("name") == self._model)
        ready = status.get("state") == "online" and status.get("ready") is True
        return ready and serves and isinstance(groups, list) and self._group in groups
