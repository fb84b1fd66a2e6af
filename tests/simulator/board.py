"""A virtual board: its card, power, clocks and network, and the processes of edged that run on it one after another."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edged.jobs.crash import LastEnd
from edged.jobs.schema import SpoolError
from edged.models.store import Store, served, store_of
from edged.mqtt.topics import Topics
from edged.rollout.remote_settings import RemoteSettings
from edged.rollout.resume import resume
from edged.settings import Loaded, Settings

from .broker import Message, Session
from .disk import PowerCutError
from .packages import Package, digest_in
from .timeline import Host

if TYPE_CHECKING:
    from .process import Process
    from .world import World

ROOT, GROUP = "edged/v1", "fleet"
BOOT_SECONDS = 25.0
"""From power to a process that reads its memory."""


class Board:
    """The machine; `process`: None while none runs. Everything that edged does runs within act()."""

    def __init__(self, world: World, name: str, factor: float, first: Package, cell: str | None) -> None:
        """`factor`: how many times as long everything takes as on an ordinary board. `first`: what it serves.

        `cell`: the group whose jobs it shares; None: it gets none.
        """
        self.world = world
        self.name = name
        self.cell = cell
        self.factor = factor
        self.topics = Topics(ROOT, name)
        self.host = Host(world.timeline, name)
        self.chance = random.Random(f"{world.seed}/{name}")
        self.settings = Settings(
            state_dir=world.folder / name,
            device={"id": name, "groups": [GROUP, *([cell] if cell else [])]},  # type: ignore[arg-type]
            fleet={"unsigned": True},  # type: ignore[arg-type]
        )
        self.loaded = Loaded(self.settings)
        self.powered = False
        self.full = False
        """The card takes no writes."""
        self.full_until = 0.0
        self.reachable = True
        """Whether the network leads to the broker."""
        self.settings_wrong = False
        self.cut_in: int | None = None
        """Writes and publications until the power goes."""
        self.process: Process | None = None
        self.crash: str | None = None
        self.last_crash: str | None = None
        """How the last process ended by its own making."""
        self.ran: tuple[int, ...] = ()
        """The jobs that it ran then."""
        self.calm_since = world.timeline.now
        """When something befell it last."""
        self.pulled: dict[str, float] = {}
        """Share of each package that a pull has brought, by digest."""
        self.dark_since: float | None = None
        self.excused = 0.0
        """Since when nothing is served though the board has power."""
        filters = {self.topics.desired: True, f"{ROOT}/group/{GROUP}/desired": True}
        if cell is not None:
            filters |= {self.topics.group_give(cell, name): False, self.topics.group_given(cell, name): False}
        self.session = Session(self, filters)
        self.session.will = Message(self.topics.status, json.dumps({"state": "offline"}).encode(), retained=True)
        world.broker.add(self.session)
        if cell is not None:
            world.broker.shared.setdefault(f"{ROOT}/group/{cell}/job", []).append(self.session)
        self.settings.state_dir.mkdir()
        store = self.store
        with store.pulling():
            first.stage(store)
            store.install(first.name, first.origin)
        store.select(first.name)

    @property
    def calm(self) -> float:
        """Since when it runs, is connected, and nothing befell it; never, where that is not so now."""
        process = self.process
        well = self.session.connected and not self.full and process is not None and not process.draining
        return self.calm_since if well else float("inf")

    @property
    def store(self) -> Store:
        return store_of(self.settings)

    # What runs

    def act(self, what: Callable[[], None]) -> None:
        """Let edged's code run here, until it ends or the power does. A fault of edged's own is a violation."""
        world = self.world
        outer = world.hosts.host, world.disk.card
        world.hosts.host, world.disk.card = self.host, self
        try:
            what()
        except SpoolError:
            pass  # the daemon logs it and goes on
        except PowerCutError:
            world.counts["power cut at a write or publication"] += 1
            self.power_off(self.chance.uniform(5.0, 600.0))
        finally:
            world.hosts.host, world.disk.card = outer

    def step(self) -> None:
        """Count a write or a publication."""
        if self.cut_in is not None:
            self.cut_in -= 1
            if self.cut_in <= 0:
                self.cut_in = None
                raise PowerCutError

    # Power

    def power_on(self) -> None:
        """It boots."""
        self.powered = True
        self.host.boot()
        self.dark_since = self.world.timeline.now
        self.crash = None
        self.start(BOOT_SECONDS * self.factor)

    def power_off(self, seconds: float) -> None:
        """The power goes at once, and comes back after so long."""
        if not self.powered:
            return
        self.powered = False
        self.cut_in = None
        self.dark_since = None
        self.end_process(tell=False)
        self.world.timeline.after(seconds, self.power_on)

    def start(self, seconds: float) -> None:
        """A process starts so many seconds from now."""
        boots = self.host.boots

        def begin() -> None:
            if self.powered and self.host.boots == boots and self.process is None:
                self.act(self._begin)

        self.world.timeline.after(seconds, begin)

    def _begin(self) -> None:
        from .process import Process  # which knows boards

        crash, self.crash = self.crash, None
        self.last_crash = crash
        path, _ = self.served_after(crash)
        try:
            self.process = Process(self, self.memory, path)
        except SpoolError:
            self.start(10.0)  # systemd tries again
            return
        self.process.begin()

    def served_after(self, crash: str | None) -> tuple[Path, str | None]:
        """What a start does before the package is chosen, and which one is."""
        self.remote = RemoteSettings(self.settings.state_dir, lambda _: self.loaded)
        self.memory = resume(self.settings, self.host, self.name, crash, self.remote)  # type: ignore[arg-type]
        path, name = served(self.settings)
        self.world.oracles.starts(self, path, digest_in(path))
        return path, name

    def end_process(self, tell: bool, crash: str | None = None) -> None:
        """The process is no more. `tell`: its connections are closed by the kernel, so that the broker notices."""
        process, self.process = self.process, None
        self.crash, self.ran, self.calm_since = crash, (), self.world.timeline.now
        if process is not None:
            if tell and process.life is not None:
                self.ran = process.life.running
            card, self.world.disk.card = self.world.disk.card, None
            process.ended()
            self.world.disk.card = card
        if self.dark_since is None and self.powered:
            self.dark_since = self.world.timeline.now
        self.world.broker.drop(self.session, tell=False)

    def last_end(self) -> LastEnd:
        """What the crash ledger tells the process that starts; after a power cut, nothing."""
        return LastEnd(self.last_crash, self.ran)

    def kill(self, crash: str | None = None) -> None:
        """The process dies, and systemd starts another one. `crash`: by its own making."""
        if self.process is not None:
            self.end_process(tell=True, crash=crash)
            self.start(2.0 + 3.0 * self.factor)

    # Network

    def connect(self, seconds: float) -> None:
        """Try to connect so many seconds from now, and again until it succeeds."""
        process = self.process

        def attempt() -> None:
            if process is None or self.process is not process or self.session.connected or process.draining:
                return
            if not self.reachable or not self.world.broker.connect(self.session):
                if self.reachable:  # else the end of the partition tries again
                    self.connect(self.chance.uniform(5.0, 60.0))
                return
            self.calm_since = self.world.timeline.now
            self.act(process.link_up)

        self.world.timeline.after(seconds, attempt)

    def cut_off(self) -> None:
        """The network is gone."""
        self.reachable = False
        self.world.broker.drop(self.session)

    def join(self) -> None:
        """The network is back."""
        self.reachable = True
        self.connect(self.chance.uniform(1.0, 60.0))

    def heard(self, message: Message, mid: int) -> None:
        """The broker brings a message."""
        process = self.process
        if process is not None:
            self.act(lambda: process.heard(message, mid))

    def lost(self) -> None:
        """The connection is lost."""
        self.calm_since = self.world.timeline.now
        process = self.process
        if process is not None:
            self.act(process.link_down)
            self.connect(self.chance.uniform(1.0, 30.0))
