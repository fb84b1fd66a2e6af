"""What a phase of the chaos run happens in: a broker, its devices, a sender, and the observer's process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, TextIO

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("broker", "unit")]

from broker_rig import Mosquitto  # noqa: E402
from daemon_fixtures import Daemon  # noqa: E402
from judge import Verdict, judge  # noqa: E402
from proxy import Proxy  # noqa: E402
from sender import Sender  # noqa: E402

PATIENCE = 30.0
"""Seconds without any result, all faults over, after which what is open counts as lost."""
QUIET = 1.0
"""Seconds without any result, after which devices that ended themselves are looked for."""
GROUP = "chaos"
NEVER = "never:0:0"
"""The kill that does not come."""


class FaultLog:
    """Faults as they happen, one JSON line each: what a run did, to be read beside the devices' logs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        """Of the phase under way, by fault."""
        self.totals: Counter[str] = Counter()
        """Of the whole run."""

    def begin(self, phase: str) -> None:
        self.counts = Counter()
        self.note("phase", name=phase)

    def fault(self, name: str, **fields: object) -> None:
        self.counts[name] += 1
        self.totals[name] += 1
        self.note(name, **fields)

    def note(self, event: str, **fields: object) -> None:
        at = round(time.monotonic() - self._began, 3)
        self._file.write(json.dumps({"at": at, "time": time.strftime("%H:%M:%S"), "event": event, **fields}) + "\n")
        self._file.flush()


class Life:
    """A daemon from its start to its end."""

    def __init__(self, pid: int, out: IO[str]) -> None:
        self.pid = pid
        self._code: int | None = None
        self._over = threading.Event()
        threading.Thread(target=self._watch, args=(out,), daemon=True).start()

    def _watch(self, out: IO[str]) -> None:
        line = out.readline()
        self._code = int(line) if line else -signal.SIGKILL
        self._over.set()

    def ended(self, timeout: float) -> int | None:
        """The exit code, or None if it still runs after `timeout` seconds."""
        self._over.wait(timeout)
        return self._code

    def signal(self, number: int) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """The process that bears one life after another (nursery.py)."""

    def __init__(self, command: list[str], env: dict[str, str], log_file: Path) -> None:
        self._life: Life | None = None
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def bear(self, kill: str) -> Life:
        """Start a daemon; the one before has ended."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{kill}\n")
        self._process.stdin.flush()
        self._life = Life(int(self._process.stdout.readline()), self._process.stdout)
        return self._life

    def close(self) -> None:
        if self._life is not None:
            self._life.signal(signal.SIGKILL)
            self._life.ended(10.0)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10.0)


class Device(Daemon):
    """A daemon that may end itself at an instant, be told another time, or live in a network of its own."""

    def __init__(self, folder: Path, port: int, device: str, **settings: str) -> None:
        settings = {"mqtt__keep_alive": "5", "model__rows": "4", **settings}
        super().__init__(folder, port, device, False, **settings)
        self._script = [str(HERE / "nursery.py")]
        self._prefix: list[str] = []
        self._nursery: Nursery | None = None
        self.life: Life | None = None
        """The daemon of now, or the last one."""
        self.instant = ""
        """The stage at which it is to end itself."""

    def inside(self, *command: str) -> None:
        """Start by this command from now on, which must replace itself (exec) by what it is given."""
        self._prefix = list(command)
        self.kill()

    def launch(self, kill: str = NEVER) -> Life:
        """Start, and do not wait; `kill` is STAGE:COUNT:DELAY."""
        if self._nursery is None:
            self._nursery = Nursery([*self._prefix, sys.executable, *self._script], self.env, self.log_file)
        self.life, self.instant = self._nursery.bear(kill), kill.partition(":")[0]
        return self.life

    @property
    def runs(self) -> bool:
        return self.life is not None and self.life.ended(0.0) is None

    def stop(self) -> None:
        """SIGKILL, and no new start."""
        assert self.life
        self.life.signal(signal.SIGKILL)
        self.life.ended(PATIENCE)

    def until_up_or_ended(self) -> None:
        """Wait until it answers over HTTP, or has given up by itself."""
        while self.runs and self.faults() is None:
            time.sleep(0.05)

    def kill(self) -> None:
        """End the daemon, and what bears it."""
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = self.life = None


class World:
    """One phase: from an empty spool to a verdict."""

    def __init__(
        self,
        name: str,
        seed: int,
        log: FaultLog,
        *,
        devices: int = 1,
        persistence: bool = False,
        sabotage: str = "",
        listen: str = "",
        window: int = 24,
    ) -> None:
        """`listen` is an address for the broker besides loopback, `window` how many jobs are open at a time.

        Each device has a proxy before the broker.
        """
        self.name, self.log = name, log
        self.draw = random.Random(f"{seed}/{name}")
        self.began = time.monotonic()
        log.begin(name)
        self.folder = Path(tempfile.mkdtemp(prefix="edged-chaos-"))
        self.folder.chmod(0o777)
        self.broker = Mosquitto(self.folder)
        self._complaints: list[str] = []
        self.clock_file = self.folder / "clock"
        self.clock_file.write_text("+0\n")
        lines = ["autosave_on_changes false", *([f"listener {self.broker.port} {listen}"] if listen else [])]
        self.broker.configure(persistence=persistence, lines=lines)
        self.broker.start()
        self._notes = self.folder / "observed"
        self._observer = subprocess.Popen(
            [sys.executable, str(HERE / "observer.py"), str(self.broker.port), str(self._notes)]
        )
        while not (self._notes.exists() and self._notes.stat().st_size):
            time.sleep(0.02)
        self.proxies = [Proxy(self.broker.port) for _ in range(devices)]
        self.devices: list[Device] = []
        for number, proxy in enumerate(self.proxies):
            folder = self.folder / f"device-{number}"
            folder.mkdir()
            options = {"device__groups": json.dumps([GROUP])} if devices > 1 else {}
            device = Device(folder, proxy.port, f"board-{number}", **options)
            device.env["CHAOS_SABOTAGE"] = sabotage
            self.devices.append(device)
        target = f"group/{GROUP}" if devices > 1 else "device/board-0"
        draw = random.Random(f"{seed}/{name}/jobs")
        self.sender = Sender(self.broker.port, re.sub("[^a-z0-9]+", "-", name), f"edged/v1/{target}/job", draw, window)

        atexit.register(self.close)  # a run that is broken off leaves no process behind

    @property
    def device(self) -> Device:
        return self.devices[0]

    def launch(self) -> None:
        """Start all devices."""
        for device in self.devices:
            device.launch()

    def complain(self, what: str) -> None:
        """The phase did not go as it should have; the verdict will say so."""
        self._complaints.append(what)
        self.log.note("complaint", what=what)

    def progress(self, results: int, revive: Callable[[], None] = lambda: None) -> None:
        """Wait until so many more results have come. Devices that ended may own all that is open: `revive` them."""
        wanted = self.sender.finished + results

        def come() -> bool:
            return self.sender.finished >= wanted

        if self.sender.until(come, QUIET):
            return
        revive()
        if not self.sender.until(come, PATIENCE):
            self.complain(f"no result within {PATIENCE:.0f} s, with {len(self.sender.open_ids())} jobs open")

    def conclude(self, patience: float = PATIENCE) -> Outcome:
        """All faults are over and all devices run: wait for what is open, ask for all once more, and judge."""
        self.sender.take(False)
        self.sender.until(self.sender.drained, patience)
        resent, jobs = self.sender.resent, self.sender.jobs
        open_ = self.sender.open_ids()
        self.sender.roll_call(patience)
        sent = self.sender.close()
        self._observer.wait(PATIENCE)
        with self._notes.open(encoding="utf-8") as lines:
            verdict = judge(sent, lines)
        verdict.wrong += self._complaints
        for device in self.devices:
            assert device.life
            device.life.signal(signal.SIGTERM)
        for device in self.devices:
            assert device.life
            if (code := device.life.ended(30.0)) != 0:
                verdict.wrong.append(f"{device.device} did not end in order: {code}")
            if "Traceback" in device.log():
                verdict.wrong.append(f"{device.device} logged a traceback")
        self.log.note("drained", open=open_)
        self.log.note("verdict", lost=verdict.lost, ran_again=verdict.ran_again, wrong=verdict.wrong)
        outcome = Outcome(self.name, self.log.counts, jobs, resent, verdict, time.monotonic() - self.began, self.folder)
        self.close()
        atexit.unregister(self.close)
        if verdict.green:
            outcome.forget()
        return outcome

    def close(self) -> None:
        for device in self.devices:
            device.kill()
        for proxy in self.proxies:
            proxy.close()
        if self._observer.poll() is None:
            self._observer.kill()
        self.broker.kill()


class Outcome:
    """A line of the table."""

    def __init__(
        self, phase: str, faults: Counter[str], jobs: int, resent: int, verdict: Verdict, seconds: float, folder: Path
    ) -> None:
        self.phase, self.faults, self.jobs, self.resent = phase, faults, jobs, resent
        self.verdict, self.seconds, self.folder = verdict, seconds, folder

    def line(self) -> str:
        verdict = self.verdict
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.items()) or "none"
        first = (
            f"{self.phase:<26} {self.jobs:>6} {self.resent:>7} {verdict.copies:>7} {len(verdict.lost):>5} "
            f"{len(verdict.ran_again):>6} {len(verdict.wrong):>6} {self.seconds:>6.0f} s  {faults}"
        )
        return first if verdict.green else f"{first}\n{self.reasons()}"

    def reasons(self) -> str:
        named = (("lost", self.verdict.lost), ("ran again", self.verdict.ran_again), ("wrong", self.verdict.wrong))
        lines = [f"  {name}: {', '.join(found[:5])}{' …' if len(found) > 5 else ''}" for name, found in named if found]
        return "\n".join(lines)

    def forget(self) -> None:
        """Remove what the phase left on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


HEADER = (
    f"{'phase':<26} {'jobs':>6} {'resent':>7} {'copies':>7} {'lost':>5} {'again':>6} {'wrong':>6} {'time':>8}  faults"
)
