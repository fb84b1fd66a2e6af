"""The settings that rollouts set on this device: those on trial, those before, and what the board refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from edged.checked_json import DamagedError
from edged.faults import Fault
from edged.rollout.desired import Received
from edged.rollout.precedence import DEVICE
from edged.settings import Loaded, Remotes, SettingsError
from edged.settings.remote import FILE, NAMES, OF_THE_DEVICE, Kept, Remote, read_kept, write_kept

log = structlog.get_logger(__name__)

Load = Callable[[Remotes | None], Loaded]
"""Reads the settings anew, with these or (None) the kept ones of rollouts. Raises SettingsError."""


class RemoteSettings:
    """The file of the settings that rollouts set; only the daemon that holds state_dir writes it."""

    def __init__(self, state_dir: Path, load: Load) -> None:
        self._folder = state_dir
        self._load = load
        try:
            self._kept = read_kept(state_dir)
        except (DamagedError, OSError) as error:
            hint = "publish the settings again with a higher sequence: until then edged has none of rollouts"
            log.error("remote_settings_refused", file=str(state_dir / FILE), reason=str(error), hint=hint)
            self._kept = Kept()

    @property
    def serving(self) -> Remotes:
        """What the next start takes."""
        return self._kept.serving

    @property
    def on_trial(self) -> bool:
        """Whether those before are kept, to go back to."""
        return self._kept.before is not None

    def wanted(self, received: Received) -> Remotes:
        """What rollouts set once this document is followed: all of it is in its `settings`, if it has these.

        Those that only a device's own document may set outlive the documents of its groups.
        """
        desired = received.desired
        if desired.settings is None:
            return self.serving
        own = {} if received.target == DEVICE else {n: one for n, one in self.serving.items() if n in OF_THE_DEVICE}
        return {**own, **{name: Remote(value, desired.rollout) for name, value in desired.settings.items()}}

    def changes(self, received: Received) -> frozenset[str]:
        """Names of the settings that this document changes, by what rollouts set so far."""
        old, new = _values(self.serving), _values(self.wanted(received))
        return frozenset(name for name in NAMES if old.get(name) != new.get(name))

    def refusal(self, received: Received) -> Fault | None:
        """Why the board cannot have the settings of this document beside its own; None where it can."""
        if received.desired.settings is None:
            return None
        try:
            left_out = self._load(self.wanted(received)).left_out
        except SettingsError:
            return None  # the board's own are wrong now: a reload says so
        return None if left_out is None else refused(left_out)

    # Each is done again after a power cut in between, and changes nothing then. They raise OSError.

    def try_out(self, received: Received) -> None:
        """Take those of this document from the next start on, and keep those before."""
        if self.changes(received):
            self._write(Kept(self.wanted(received), before=self.serving))

    def go_back(self) -> None:
        """End a trial, if there is one, with those before."""
        if self._kept.before is not None:
            self._write(Kept(self._kept.before))

    def adopt(self, received: Received) -> None:
        """Those of this document stay; also where the file was damaged since."""
        if self.on_trial or self.changes(received):
            self._write(Kept(self.wanted(received)))

    def _write(self, kept: Kept) -> None:
        write_kept(self._folder, kept)
        self._kept = kept


def refused(reason: str) -> Fault:
    """The fault of settings that do not fit the board's own."""
    hint = "correct settings in the document, or those of the board, and publish it with a higher sequence"
    return Fault("rollout_settings_refused", reason, hint)


def warnings(loaded: Loaded) -> tuple[Fault, ...]:
    """What rollouts set and does not hold on this board."""
    faults = [] if loaded.left_out is None else [refused(f"what rollouts set is left out: {loaded.left_out}")]
    if loaded.overridden:
        told = [
            f"{name} is set by {loaded.origins[name]}, which overrides {one.origin}"
            for name, one in loaded.overridden.items()
        ]
        hint = "unset it on the board, or leave it out of the rollout"
        faults.append(Fault("rollout_settings_overridden", "; ".join(told), hint))
    return tuple(faults)


def reported_settings(loaded: Loaded) -> dict[str, Any]:
    """The settings that rollouts can set as they serve, and where each is from; `overrides`: what a rollout wanted."""
    told = {name: {"value": loaded.value(name), "from": loaded.origins[name]} for name in NAMES}
    for name, one in loaded.overridden.items():
        told[name]["overrides"] = {"value": one.value, "from": one.origin}
    return told


def _values(remotes: Remotes) -> Mapping[str, Any]:
    return {name: one.value for name, one in remotes.items()}
