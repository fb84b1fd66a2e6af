"""What can befall a world. Each fault is over when its function returns, and is in the log."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from places import Disk
from world import Device, Life, World

# (stage, at most so many times, at most so many seconds into it): an instant is drawn within these.
Instant = tuple[str, int, float]
RECEIVED: Instant = ("received", 12, 0.0)
COMMITTING: Instant = ("committing", 3, 0.03)
COMMITTED: Instant = ("committed", 3, 0.0)
RUNNING: Instant = ("running", 40, 0.01)
RESULT_COMMITTED: Instant = ("result-committed", 3, 0.0)
PUBLISHED: Instant = ("published", 12, 0.0)
STARTING: Instant = ("starting", 20, 0.0)
RECOVERING: Instant = ("recovering", 60, 0.0)
"""A start that takes the spool for damaged and takes over what is in it."""
DRAINING: Instant = ("draining", 100, 0.0)
LIFE = (RECEIVED, COMMITTING, COMMITTED, RUNNING, RESULT_COMMITTED, PUBLISHED)
"""Those of a job's life."""
STAGES = [stage for stage, _, _ in (*LIFE, STARTING, RECOVERING, DRAINING)]
INSTANT_SECONDS = 30.0
"""An instant that does not come by then is none: jobs are sent all the time."""


def kill_at(world: World, instant: Instant, device: int = 0) -> bool:
    """Start the device, which runs until it kills itself at that instant; False where the instant does not come."""
    stage, most, longest = instant
    count, delay = world.draw.randint(1, most), world.draw.uniform(0.0, longest)
    life = _launch(world, world.devices[device], instant, count, delay)
    code = life.ended(INSTANT_SECONDS)
    if code == -signal.SIGKILL:
        world.log.fault(f"kill {stage}", device=device, count=count, delay=round(delay, 4))
        return True
    life.signal(signal.SIGKILL)
    life.ended(INSTANT_SECONDS)
    world.complain(f"board-{device} was not killed when {stage} for time {count}: {code}")
    return False


def _launch(world: World, device: Device, instant: Instant, count: int, delay: float) -> Life:
    stage = instant[0]
    if instant is RECOVERING:
        stage = "starting"
        (device.state_dir / "spool.db.damage").write_text("chaos")  # the daemon's own note to its next start
    life = device.launch(f"{stage}:{count}:{delay:.4f}")
    if instant is DRAINING:
        twice = world.draw.random() < 0.5  # the second one ends the drain
        results = world.draw.randint(1, 20)
        device.until_up_or_ended()
        world.progress(results)
        life.signal(signal.SIGTERM)
        if twice:
            life.signal(signal.SIGTERM)
    return life


def arm(world: World, instant: Instant, device: int) -> None:
    """SIGKILL, and a new start that will end itself at that instant; revive() starts it again."""
    stage, most, longest = instant
    count, delay = world.draw.randint(1, most), world.draw.uniform(0.0, longest)
    world.log.fault("kill", device=device)
    world.log.note("armed", device=device, stage=stage, count=count, delay=round(delay, 4))
    world.devices[device].stop()
    world.devices[device].launch(f"{stage}:{count}:{delay:.4f}")


def revive(world: World) -> None:
    """Start again what ended itself."""
    for number, device in enumerate(world.devices):
        if not device.runs:
            assert device.life
            if (code := device.life.ended(0.0)) != -signal.SIGKILL:
                world.complain(f"board-{number} ended by itself: {code}")
            world.log.fault(f"kill {device.instant}", device=number)
            device.launch()


def kill(world: World, device: int = 0) -> None:
    """SIGKILL from outside, at whatever instant this is, and a new start."""
    world.log.fault("kill", device=device)
    world.devices[device].stop()
    world.devices[device].launch()


def kill_broker(world: World) -> None:
    """SIGKILL of the broker, and its restart after a while."""
    away = world.draw.choice((0.0, 0.2, 1.0, 3.0))
    world.log.fault("broker kill", away=away)
    world.broker.kill()
    time.sleep(away)
    world.broker.start()


def lose(world: World, device: int = 0) -> None:
    """What device and broker send each other for a while is lost, and then the connection is."""
    seconds = world.draw.uniform(0.05, 0.5)
    world.log.fault("loss", device=device, seconds=round(seconds, 3))
    world.proxies[device].lose(seconds)


def halve(world: World, device: int = 0) -> None:
    """One side loses the connection, and the other must find out for itself."""
    side = world.draw.choice(("device", "broker"))
    world.log.fault("half-open", device=device, loses=side)
    world.proxies[device].halve(side == "device")


def delay(world: World, device: int = 0) -> None:
    """Every piece of data takes its time for a while."""
    seconds, length = world.draw.uniform(0.05, 0.3), world.draw.uniform(0.5, 2.0)
    world.log.fault("delay", device=device, seconds=round(seconds, 3), length=round(length, 3))
    world.proxies[device].delay = seconds
    time.sleep(length)
    world.proxies[device].delay = 0.0


def stop(world: World, seconds: float, devices: Sequence[int] = (0,)) -> None:
    """SIGSTOP for so long, of all these devices at a time."""
    lives = [life for device in devices if (life := world.devices[device].life)]
    for device, life in zip(devices, lives, strict=True):
        world.log.fault("SIGSTOP", device=device, seconds=round(seconds, 1))
        life.signal(signal.SIGSTOP)
    time.sleep(seconds)
    for life in lives:
        life.signal(signal.SIGCONT)


def break_disk(world: World, disk: Disk) -> None:
    """The kernel finds an error and turns the disk read-only, at a moment when the device is in no fdatasync.

    One that is under way then can return success and lose what it wrote: seen with nothing but pwrite and fdatasync on
    Linux 6.18, once in 70 times. No program can do better than to believe it, so it is nothing to judge edged by.
    """
    life = world.device.life
    assert life
    life.signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{life.pid}/task")
    while any(task.joinpath("stat").read_text().rpartition(") ")[2][0] != "T" for task in tasks.iterdir()):
        time.sleep(0.001)
    disk.fail()
    life.signal(signal.SIGCONT)


def set_clock(world: World, seconds: int) -> None:
    """The device's wall clock is off by so much from now on."""
    world.log.fault("clock", seconds=seconds)
    part = world.clock_file.with_suffix(".part")
    part.write_text(f"{seconds:+d}\n")
    os.replace(part, world.clock_file)
