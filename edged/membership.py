"""Decides whether the device takes the jobs of its groups: one that cannot serve leaves them to those that can.

A device that could not serve for LEAVE_SECONDS asks on each group's `ping` topic who serves. Devices that serve and
take the group's jobs answer on its `pong` topic. An answer counts for ANSWER_SECONDS from the question on, and in that
time the one that gave it cannot leave, since it served. So one device stays, whatever is lost on the way.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from edged.durable import write_durably
from edged.governor import limited
from edged.mqtt.events import GroupPing, GroupPong
from edged.mqtt.groups import Membership
from edged.mqtt.topics import is_id
from edged.status import DaemonState, Status, sentence

LEAVE_SECONDS = 60.0
"""For how long a device must be unable to serve before it leaves."""
ANSWER_SECONDS = 60.0
"""For how long an answer counts; not longer than LEAVE_SECONDS, else two devices could leave for each other."""
ASK_SECONDS = 20.0
"""Interval of the questions, so that three may be lost before a device comes back for want of answers."""
ANSWERS_A_SECOND = 20
"""Most answers that a device gives in a second, however many ask."""
RECORD = "group-model"
"""The file in state_dir with the name of the model whose jobs the device takes on a topic of their own."""

log = structlog.get_logger(__name__)


def serves(status: Status) -> bool:
    """Whether a job that is taken now is answered, though perhaps late: a full device serves too."""
    online = status.state is DaemonState.ONLINE and not status.governor.sheds_groups
    return online and status.model.state == "serving" and not _lacks_spool(status)


def cannot_serve(status: Status) -> bool:
    """Whether jobs are refused, left at the broker, or held back by the board's limits.

    While a model loads, jobs wait, and neither holds.
    """
    return status.model.state == "unavailable" or _lacks_spool(status) or status.governor.sheds_groups


def takes_group_jobs(status: Status, unserved_seconds: float, another_serves: bool, takes_now: bool) -> bool:
    """Whether the device takes the jobs of a group.

    `unserved_seconds`: for how long it could not serve. `another_serves`: whether another device of the group is known
    to serve and to take its jobs. `takes_now`: the last decision.
    """
    if status.state is not DaemonState.ONLINE:
        return takes_now  # it drains, perhaps for a restart: it is back soon, and the broker keeps its jobs
    return unserved_seconds < LEAVE_SECONDS or not another_serves


def _lacks_spool(status: Status) -> bool:
    return any(fault.code == "spool_fault" for fault in status.unready)


class GroupLink(Protocol):
    """What the groups need of the link."""

    def set_membership(self, membership: Membership) -> None: ...
    def ping(self, group: str, nonce: str) -> None: ...
    def pong(self, group: str, nonce: str) -> None: ...


class Groups:
    """The groups of this device. Main thread only; the time is that of the status snapshots."""

    def __init__(self, groups: Sequence[str], link: GroupLink, state_dir: Path) -> None:
        self._groups = tuple(dict.fromkeys(groups))
        self._link = link
        self._record = state_dir / RECORD
        # The broker's session may hold the topics of this model: they are left once it is known not to be served.
        self._model = self._recorded = self._read_record() if self._groups else None
        self._unserved_since: float | None = None
        self._left: frozenset[str] = frozenset()
        self._kept_logged = False
        self._nonce = ""
        self._asked_at = float("-inf")
        self._answered: dict[str, float] = {}
        """By group: when the newest question was asked that has an answer."""
        self._second, self._answers = 0, 0
        """The second of the last answer, and the answers in it."""

    def update(self, status: Status) -> None:
        """Take what changed in `status`, and let time pass. Call about every second."""
        if not self._groups:
            return
        now = status.monotonic_time
        if serves(status):
            self._unserved_since = None
        elif cannot_serve(status) and self._unserved_since is None:
            self._unserved_since, self._kept_logged = now, False
        unserved = 0.0 if self._unserved_since is None else now - self._unserved_since
        self._decide(status, unserved, now)
        self._note_model(status)
        asking = unserved >= LEAVE_SECONDS and status.state is DaemonState.ONLINE
        self._link.set_membership(Membership(self._left, self._model, asking, status.shares_load, status.backlog))
        if asking and now - self._asked_at >= ASK_SECONDS:
            self._nonce, self._asked_at = uuid.uuid4().hex, now
            for group in self._groups:
                self._link.ping(group, self._nonce)

    def pinged(self, event: GroupPing, status: Status) -> None:
        """Answer that this device serves, if so."""
        group, now = event.group, status.monotonic_time
        joined = status.groups.get(group, False) and status.connected["jobs"]
        if not serves(status) or not joined:
            return
        self._unserved_since = None
        if self._second != int(now):
            self._second, self._answers = int(now), 0
        self._answers += 1
        if self._answers <= ANSWERS_A_SECOND:
            self._link.pong(group, event.nonce)

    def ponged(self, event: GroupPong) -> None:
        """Another device of the group serves, and did so after the question with this nonce."""
        if event.nonce == self._nonce:
            self._answered[event.group] = self._asked_at

    def _decide(self, status: Status, unserved: float, now: float) -> None:
        known = {group for group, asked_at in self._answered.items() if now - asked_at < ANSWER_SECONDS}
        left = frozenset(
            group
            for group in self._groups
            if not takes_group_jobs(status, unserved, group in known, takes_now=group not in self._left)
        )
        why = sentence(status.unready) or sentence(limited(status.governor))
        for group in sorted(left - self._left):
            log.warning("group_left", group=group, reason=why, hint="it comes back by itself once it serves")
        for group in sorted(self._left - left):
            log.info("group_joined", group=group)
        self._left = left
        if unserved >= LEAVE_SECONDS + ASK_SECONDS and left != set(self._groups) and not self._kept_logged:
            self._kept_logged = True
            hint = "no other device there says that it serves: mend this one; older roles need provision.py upgrade"
            log.warning("group_kept", groups=sorted(set(self._groups) - left), reason=why, hint=hint)

    def _note_model(self, status: Status) -> None:
        if status.state is not DaemonState.ONLINE or status.model.state == "loading":
            return
        model = status.model.name if status.model.state == "serving" and is_id(status.model.name) else None
        if model is not None and model != self._recorded:
            self._recorded = model
            try:
                write_durably(self._record, model)
            except OSError as error:
                hint = "after a change of model, the first job for the former one may be refused"
                log.warning("group_model_not_recorded", reason=error.strerror, hint=hint)
        self._model = model

    def _read_record(self) -> str | None:
        try:
            name = self._record.read_bytes()[:65].decode("ascii", "replace")
        except OSError:
            return None
        return name if is_id(name) else None
