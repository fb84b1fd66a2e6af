"""The governor in a real daemon, under a quota of processor time: its load warms a board that is a folder of files."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_fixtures import Client5, Daemon, Place, job
from figures import table
from patience import eventually

pytest_plugins = ["daemon_fixtures"]
PI5 = Path(__file__).parents[1] / "fixtures/boards/pi5"
QUOTA = 0.9
"""Of a core, which is the whole board. Much less would blunt a duty, which is a share of time on a whole core."""
SECONDS = 300
JOBS, TOKENS = 12, 200
"""Jobs under way, and tokens of each: nearly all of the processor's time is the engine's."""
CONTROLLERS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
"""Where version 1 of control groups has that of processor time, and version 2 all."""


@contextlib.contextmanager
def quota(pid: int) -> Iterator[None]:
    """The process gets QUOTA of a core at most. Skips the test where no group can be made."""
    parent = next(folder for folder in CONTROLLERS if folder.exists())
    group = parent / f"edged-test-{pid}"
    try:
        group.mkdir()
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_quota_us").write_text(f"{QUOTA * 100_000:.0f}")
        else:
            (group / "cpu.max").write_text(f"{QUOTA * 100_000:.0f} 100000")
        (group / "cgroup.procs").write_text(f"{pid}")
    except OSError as error:
        pytest.skip(f"no control group with processor time: {error}")
    try:
        yield
    finally:
        (parent / "cgroup.procs").write_text(f"{pid}")
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


class WarmBoard:
    """A Pi 5 without a cooler in a warm case: heat as in tests/unit/simulated_board.py, by what a process uses."""

    AMBIENT, KELVIN_PER_WATT, JOULES_PER_KELVIN = 45.0, 9.0, 22.0
    IDLE_WATTS, BUSY_WATTS = 2.7, 7.2
    STEP = 0.55
    """Kelvin between two values of its sensor."""

    def __init__(self, root: Path) -> None:
        shutil.copytree(PI5, root)
        self.celsius = self.hottest = 83.0
        self._file = root / "sys/class/thermal/thermal_zone0/temp"
        self._stop = threading.Event()
        self._write()

    def follow(self, pid: int) -> None:
        process = psutil.Process(pid)
        used, at = sum(process.cpu_times()[:2]), time.monotonic()
        while not self._stop.wait(0.2):
            now_used, now = sum(process.cpu_times()[:2]), time.monotonic()
            load = min(1.0, (now_used - used) / (now - at) / QUOTA)
            watts = self.IDLE_WATTS + load * (self.BUSY_WATTS - self.IDLE_WATTS)
            lost = (self.celsius - self.AMBIENT) / self.KELVIN_PER_WATT
            self.celsius += (watts - lost) * (now - at) / self.JOULES_PER_KELVIN
            self.hottest = max(self.hottest, self.celsius)
            used, at = now_used, now
            self._write()

    def stop(self) -> None:
        self._stop.set()

    def _write(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{1000 * self.STEP * (self.celsius // self.STEP):.0f}\n")
        part.rename(self._file)


def keep_busy(client: Client5, stop: threading.Event, sent: list[str]) -> None:
    """Always so many jobs."""
    for n in itertools.count():
        if n >= JOBS:
            client.result(f"warm-{n - JOBS}")
        if stop.is_set():
            return
        client.send(job(f"warm-{n}", TOKENS))
        sent.append(f"warm-{n}")


@pytest.mark.skipif(os.geteuid() != 0, reason="a control group needs root")
def test_a_board_that_gets_too_hot_is_held_below_its_limit_without_swinging_and_answers_every_job(place: Place) -> None:
    board = WarmBoard(place.folder / "board")
    daemon = place.daemon(paced=True, model__rows="8")
    daemon.env["TEST_ROOT"] = str(place.folder / "board")
    daemon.start()
    assert daemon.process is not None
    client, stop, sent = place.client(), threading.Event(), list[str]()
    threads = [
        threading.Thread(target=board.follow, args=(daemon.process.pid,)),
        threading.Thread(target=keep_busy, args=(client, stop, sent)),
    ]
    with quota(daemon.process.pid):
        for thread in threads:
            thread.start()
        duties, lines = watched(daemon, board)
        stop.set()
        threads[1].join()
    board.stop()
    threads[0].join()
    table("duty and temperature, every 15 s", lines)
    settled = duties[len(duties) // 2 :]
    turns = turns_of(duties)
    figures = {
        "°C at most, of 85": f"{board.hottest:.2f}",
        "duty in the second half, least and most": f"{min(settled):.3f} {max(settled):.3f}",
        "turns of the duty": turns,
        "jobs": len(sent),
    }
    table(f"{SECONDS} s with a quota of {QUOTA} cores", figures)
    if board.hottest < 84.5:
        pytest.skip("other work left the daemon too little time to warm the board")
    assert board.hottest < 86.0
    assert max(settled) < 0.9  # it was held back, and nothing else kept it cool
    assert max(settled) - min(settled) < 0.2
    assert turns <= SECONDS / 30
    assert {client.result(id)["state"] for id in sent} == {"succeeded"}
    assert daemon.logged("board_limited")


def turns_of(duties: list[float], least: float = 0.05) -> int:
    """How often the duty turned round by more than `least`."""
    turns, up, extreme = 0, False, duties[0]
    for duty in duties:
        if (duty - extreme) * (1 if up else -1) > 0:
            extreme = duty
        elif abs(duty - extreme) > least:
            turns, up, extreme = turns + 1, not up, duty
    return turns


def watched(daemon: Daemon, board: WarmBoard) -> tuple[list[float], dict[str, str]]:
    """The duty of each second, and a line of all every 15 s."""
    duties, lines, began = list[float](), dict[str, str](), time.monotonic()
    while (second := time.monotonic() - began) < SECONDS:
        duties.append(daemon.metric("edged_governor_duty_ratio"))
        if len(duties) % 15 == 1:
            tokens = daemon.metric("edged_generated_tokens_total")
            lines[f"{second:.0f} s"] = f"{duties[-1]:.3f}  {board.celsius:.1f} °C  {tokens:.0f} tokens"
        time.sleep(max(0.0, began + len(duties) - time.monotonic()))  # it is the passing of time that is measured
    return duties, lines
