"""What the broker has of a group's rollouts: the desired documents heard, and what each device of it reported."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from edged.faults import Fault
from edged.fleet.boards import MOST_BOARDS, MOST_BYTES, Boards
from edged.fleet.fields import object_of
from edged.fleet.summary import summary
from edged.mqtt.session_types import Subscription
from edged.mqtt.topics import Topics, is_id
from edged.rollout.conductor import Wave, wave_of
from edged.rollout.conductor_member import Member, read_member
from edged.rollout.desired import MOST_SEQUENCE, Received, RefusedError, check_desired, read_desired


class Heard:
    """The connection's thread tells; any thread may read.

    Of one rollout, the waves of all documents that were heard are merged, so that one that was published late or by
    somebody who knew less takes nothing back.
    """

    def __init__(
        self,
        boards: Boards,
        root: str,
        group: str,
        check: Callable[[Received], None],
        signed: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check` raises RefusedError for a document that is not to be heeded.

        `signed`: it looks at signatures, so that a document that a device reports is as good as one on its own topic.
        """
        self.boards = boards
        self.group, self.target = group, f"group/{group}"
        self.topic = Topics(root, "").group_desired(group)
        self._reported = f"{root}/device/", "/reported"
        self._check = check
        self._signed = signed
        self._now = now
        self._lock = threading.Lock()
        self._retained: Received | None = None
        self._newest: Received | None = None
        self._wave = Wave()
        self._raised_at = now()
        self._other: Received | None = None
        self._reports: dict[str, Mapping[str, Any]] = {}
        self.refused: Fault | None = None
        """Why the document that the broker retains is not heeded."""

    def subscriptions(self) -> list[Subscription]:
        """What brings them; the role `conductor` of provision.py may read it."""
        reported = "+".join(self._reported)
        return [
            Subscription(self.topic, qos=1, purpose="the group's desired documents", retained=True, required=True),
            Subscription(reported, qos=1, purpose="reported documents", retained=True, required=True),
        ]

    # Told by the connection's thread.

    def connect(self) -> None:
        """The broker delivers from now on."""
        self.boards.connect()

    def disconnect(self) -> None:
        """The connection to the broker is lost."""
        self.boards.disconnect()

    def take(self, topic: str, payload: bytes, retained: bool, expiry: int | None = None) -> None:
        """Take a message."""
        prefix, suffix = self._reported
        if topic == self.topic:
            with self._lock:
                self._take_desired(payload)
        elif topic.startswith(prefix) and topic.endswith(suffix):
            with self._lock:
                self._take_report(topic[len(prefix) : -len(suffix)], payload)
        else:
            self.boards.take(topic, payload, retained, expiry)

    def _take_desired(self, payload: bytes) -> None:
        self._retained = self.refused = None
        if not payload:
            return
        try:
            received = read_desired(payload, self.target)
            self._check(received)
        except RefusedError as error:
            self.refused = error.fault
            return
        self._retained = received
        self._merge(received, wave_of(received.desired))

    def _take_report(self, device: str, payload: bytes) -> None:
        document = _object(payload)
        if not document or not is_id(device):
            self._reports.pop(device, None)
            return
        if device not in self._reports and len(self._reports) >= MOST_BOARDS:
            return
        self._reports[device] = document
        if document.get("target") != self.target:
            return
        try:
            received = check_desired(object_of(document.get("desired")), self.target)
            self._check(received)
        except RefusedError:
            return
        known = self._newest is not None and received.release == self._newest.release
        if self._signed or known:
            # Not the percent: a device must not be able to advance a rollout, and no other needs it from there.
            self._merge(received, replace(wave_of(received.desired), percent=0.0))

    def _merge(self, received: Received, wave: Wave) -> None:
        newest = self._newest
        if newest is None or received.desired.sequence > newest.desired.sequence:
            self._newest, self._wave, self._raised_at, self._other = received, wave, self._now(), None
        elif received.release == newest.release:
            merged = self._wave.merge(wave)
            if merged.percent > self._wave.percent:
                self._raised_at = self._now()
            self._wave = merged
        elif received.desired.sequence == newest.desired.sequence:
            self._other = received

    # Read by the conductor.

    @property
    def retained(self) -> Received | None:
        """The group's desired document, if it is one to be heeded."""
        return self._retained

    @property
    def newest(self) -> Received | None:
        """The document of the highest sequence that was heard of, also if the broker has forgotten it since."""
        return self._newest

    @property
    def other(self) -> Received | None:
        """A document with the sequence of the newest one and other content: two rollouts were begun at once."""
        return self._other

    @property
    def highest_sequence(self) -> int:
        """The highest sequence of the group that was heard of; 0 without any."""
        with self._lock:
            reported = [one.get("sequence") for one in self._reports.values() if one.get("target") == self.target]
        known = [] if self._newest is None else [self._newest.desired.sequence]
        return max([*known, *(one for one in reported if isinstance(one, int) and one < MOST_SEQUENCE)], default=0)

    def wave(self) -> Wave:
        """All that is known of the newest document's wave."""
        with self._lock:
            return self._wave

    def since_raise(self) -> float:
        """Seconds since the percent of the newest document was heard to rise."""
        with self._lock:
            return self._now() - self._raised_at

    def reports(self) -> dict[str, Mapping[str, Any]]:
        """The reported document of each device of the group."""
        with self._lock:
            reports = dict(self._reports)
        return {device: reports.get(device, {}) for device in self._here()}

    def members(self, received: Received, wall: float) -> list[Member]:
        """The devices of the group that follow this document, or will. `wall`: now, in seconds since the epoch."""
        with self._lock:
            reports = dict(self._reports)
        found = (
            read_member(device, here, reports.get(device, {}), received, wall) for device, here in self._here().items()
        )
        return [member for member in found if member is not None]

    def _here(self) -> dict[str, bool]:
        """Each known device of the group, and whether it is there."""
        summaries = (summary(device, board, time.time()) for device, board in self.boards.all().items())
        return {one.device: not one.away for one in summaries if self.group in one.groups}


def _object(payload: bytes) -> Mapping[str, Any]:
    """The JSON object of a payload; empty where it is none or too long."""
    if len(payload) > MOST_BYTES:
        return {}
    try:
        return object_of(json.loads(payload))
    except (ValueError, RecursionError):
        return {}
