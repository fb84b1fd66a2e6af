"""Conducts a rollout: looks at what devices report, and publishes the next wave until the rollout is over.

All that it knows is at the broker. So it may end at any time, and another one goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from edged.faults import Fault
from edged.fleet.gather import BrokerError, Gathering
from edged.rollout.conductor import MINUTE, Decision, Options, Verdict, Wave, decide, wave_of
from edged.rollout.conductor_documents import Heard
from edged.rollout.conductor_member import Member
from edged.rollout.desired import SIGNATURES, WAVE, Received, check_desired

LOOK_SECONDS = 1.0
"""Between two looks at what was heard."""
AGAIN_SECONDS = 5.0
"""Before the next try to reach the broker."""
SETTLE_SECONDS = 2.0
"""After the word of a person, for which a conductor may publish a wave that it made before it heard that."""
Connect = Callable[[], AbstractContextManager[tuple[Gathering, Heard]]]
Keep = Callable[[str, bytes], None]
"""Lets the broker retain a payload on a topic."""
Sign = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_OVER = (Verdict.SUCCEEDED, Verdict.ABORTED, Verdict.SUPERSEDED)


class CannotBeginError(ValueError):
    """The rollout that is wanted does not fit what the group has; one line."""


@dataclass(frozen=True)
class Picture:
    """How a rollout is, for people and scripts."""

    received: Received
    decision: Decision
    members: tuple[Member, ...] = ()
    refused: Fault | None = None
    """Why the document that the broker retains is not heeded, where it is not."""


def choose(heard: Heard, wanted: Mapping[str, Any] | None) -> Received:
    """The document to conduct: the group's own if it is the wanted one, or a new one with the next sequence.

    `wanted`: a document, which may lack `sequence`; None: what the group has. Raises CannotBeginError, RefusedError.
    """
    newest = heard.newest
    if wanted is None:
        if newest is None:
            why = "" if heard.refused is None else f": {heard.refused.message}"
            raise CannotBeginError(f"the group {heard.group} has no rollout{why}; --model or --document begins one")
        return newest
    plain = {name: value for name, value in wanted.items() if name not in WAVE and name != "wave_signature"}
    if newest is not None:
        same = {"sequence": newest.desired.sequence, **plain}
        if check_desired(same, heard.target).release == newest.release:
            return newest
    if "sequence" in plain:
        received = check_desired(plain, heard.target)
        if received.desired.sequence <= heard.highest_sequence:
            raise CannotBeginError(
                f"the group {heard.group} has the sequence {heard.highest_sequence}: give the document a higher one"
            )
        return received
    received = check_desired({"sequence": heard.highest_sequence + 1, **plain}, heard.target)
    if newest is not None and newest.desired.rollout == received.desired.rollout:
        raise CannotBeginError(
            f"the group {heard.group} has a rollout {newest.desired.rollout} with another content: "
            "give the new one another id with --rollout"
        )
    return received


def document_of(received: Received, wave: Wave, sign: Sign) -> Mapping[str, Any]:
    """The document that tells devices of this wave."""
    kept = {name: value for name, value in received.document.items() if name not in WAVE and name != "wave_signature"}
    told: dict[str, Any] = {**kept, "percent": wave.percent}
    if wave.abort:
        told["abort"] = True
    if wave.pauses:
        told["pauses"] = wave.pauses
    return sign(told)


class Conductor:
    """One rollout, over as many connections as it takes."""

    def __init__(self, wanted: Mapping[str, Any] | None, options: Options, sign: Sign) -> None:
        self._wanted = wanted
        self._options = options
        self._sign = sign
        self._received: Received | None = None
        self._wave = Wave()
        self._begun = False

    def run(self, connect: Connect, show: Callable[[Picture], None], lost: Callable[[str], None]) -> Picture:
        """Until the rollout is over. `show` is called at each look, `lost` when the broker was lost and is tried again.

        Raises BrokerError where it cannot begin, and what choose() raises.
        """
        while True:
            try:
                with connect() as (gathering, heard):
                    gathering.gather()
                    while True:
                        picture = self.step(heard, gathering.keep)
                        self._begun = True
                        show(picture)
                        if picture.decision.verdict in _OVER:
                            return picture
                        gathering.listen(LOOK_SECONDS)
            except BrokerError as error:
                if not self._begun:
                    raise
                lost(str(error))
                time.sleep(AGAIN_SECONDS)

    def step(self, heard: Heard, keep: Keep) -> Picture:
        """Look once, and publish what follows. Raises what choose() and publish() do."""
        if self._received is None:
            self._received = choose(heard, self._wanted)
        received, newest = self._received, heard.newest
        refused = heard.refused
        members, since_raise = tuple(heard.members(received, time.time())), MINUTE
        if newest is not None and newest.release == received.release:
            self._wave, since_raise = self._wave.merge(heard.wave()), heard.since_raise()
        elif newest is not None and newest.desired.sequence >= received.desired.sequence:
            return Picture(received, Decision(Verdict.SUPERSEDED, self._wave), members)
        if heard.other is not None:
            return Picture(received, Decision(Verdict.SUPERSEDED, self._wave), members)
        decision = decide(members, self._wave, self._options, since_raise)
        if decision.wave != Wave():
            publish(keep, heard, received, decision.wave, self._sign)
        self._wave = decision.wave
        return Picture(received, decision, members, refused)


def publish(keep: Keep, heard: Heard, received: Received, wave: Wave, sign: Sign) -> None:
    """Let the broker retain this wave, if it does not yet. Raises BrokerError."""
    retained = heard.retained
    if retained is not None and retained.release == received.release and wave_of(retained.desired) == wave:
        return
    document = document_of(received, wave, sign)
    keep(heard.topic, json.dumps(document, ensure_ascii=False).encode())


def change(gathering: Gathering, heard: Heard, alter: Callable[[Wave], Wave], sign: Sign) -> Received:
    """Change the wave of the group's rollout by a person's word. Raises CannotBeginError and BrokerError."""
    received = choose(heard, None)
    wanted = alter(heard.wave())
    until = time.monotonic() + SETTLE_SECONDS
    publish(gathering.keep, heard, received, wanted, sign)
    while time.monotonic() < until:
        gathering.listen(SETTLE_SECONDS / 10)
        newest = heard.newest
        if newest is None or newest.release != received.release:
            raise CannotBeginError(f"another rollout took the place of {received.desired.rollout}")
        wanted = wanted.merge(heard.wave())
        publish(gathering.keep, heard, received, wanted, sign)
    return received


def paused(wave: Wave) -> Wave:
    """With no conductor that raises it."""
    return wave if wave.paused else replace(wave, pauses=wave.pauses + 1)


def resumed(wave: Wave) -> Wave:
    """With conductors that raise it."""
    return replace(wave, pauses=wave.pauses + 1) if wave.paused else wave


def aborted(wave: Wave) -> Wave:
    """The end for all devices that have not finished."""
    return replace(wave, abort=True)


def is_signed(document: Mapping[str, Any]) -> bool:
    """Whether the document has a signature."""
    return bool(SIGNATURES & document.keys())
