"""The events that reach the main loop from other threads."""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TypeAlias

from edged.commands.worker import WorkerEnded
from edged.engine.events import EngineEvent
from edged.jobs.preparer import Prepared
from edged.mqtt.events import Event
from edged.rollout.puller import PullEvent


@dataclass(frozen=True)
class Stop:
    """Drain and end; `now`: end without draining."""

    now: bool


@dataclass(frozen=True)
class Reload:
    """Drain and end, to run anew with the settings as they are then; `now`: without draining."""

    now: bool = False


InboxEvent: TypeAlias = Event | EngineEvent | Prepared | PullEvent | WorkerEnded | Stop | Reload
Inbox: TypeAlias = "queue.SimpleQueue[InboxEvent]"
