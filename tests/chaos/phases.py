"""The phases of the chaos run: which faults, and when. Everything is drawn from the seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from glob import glob

import faults
import places
from faults import DRAINING, LIFE, RECOVERING, RUNNING, STARTING
from sender import LARGE
from world import PATIENCE, FaultLog, Outcome, World

from limiting_proxy import LimitingProxy  # isort: skip  # world.py makes tests/broker importable

KEEP_ALIVE = 5.0
"""Seconds, of every device here; the broker gives up after half as long again."""
DAY = 86400


KILLS = 50
"""In every stage of a job's life."""


def kills(seed: int, log: FaultLog, each: int = KILLS) -> Outcome:
    """SIGKILL of the device, so many times in every stage of a job's life."""
    world = World("kill -9", seed, log)
    instants = list(LIFE) * each
    world.draw.shuffle(instants)
    world.sender.take(True)
    for instant in instants:
        faults.kill_at(world, instant)
    world.launch()
    return world.conclude()


def kills_at_ends(seed: int, log: FaultLog) -> Outcome:
    """SIGKILL of the device while it starts, at first on nothing, while it mends its spool, and while it drains."""
    world = World("kill -9, start and end", seed, log)
    world.sender.take(True)
    for _ in range(3):
        faults.kill_at(world, STARTING)
    faults.kill_at(world, DRAINING)
    instants = [STARTING, RECOVERING, DRAINING] * 20
    world.draw.shuffle(instants)
    for instant in instants:
        faults.kill_at(world, instant)
    world.launch()
    return world.conclude()


def persistent_broker(seed: int, log: FaultLog) -> Outcome:
    """SIGKILL and restart of a broker that remembers what was a second before."""
    return _broker(World("broker, persistent", seed, log, persistence=True))


def forgetful_broker(seed: int, log: FaultLog) -> Outcome:
    """SIGKILL and restart of a broker that remembers nothing."""
    return _broker(World("broker, forgetful", seed, log))


def _broker(world: World) -> Outcome:
    world.launch()
    world.sender.take(True)
    for _ in range(10):
        world.progress(world.draw.randint(5, 40))
        faults.kill_broker(world)
    world.progress(20)
    return world.conclude()


def bad_network(seed: int, log: FaultLog) -> Outcome:
    """Delay, loss and half-open connections, by the proxy."""
    world = World("bad network", seed, log)
    world.launch()
    world.sender.take(True)
    todo = [faults.delay] * 4 + [faults.lose] * 10 + [faults.halve] * 4
    world.draw.shuffle(todo)
    for fault in todo:
        world.progress(world.draw.randint(5, 30))
        fault(world)
    world.progress(20)
    return world.conclude()


def large_results(seed: int, log: FaultLog) -> Outcome:
    """The broker closes the connection on results above a size, while lines fail and the device is killed."""
    world = World("large results", seed, log)
    proxy = LimitingProxy(world.proxies[0].port, whole=world.draw.random() < 0.5)
    world.device.env["EDGED_MQTT__PORT"] = str(proxy.port)
    world.device.env["EDGED_MQTT__PROTOCOL"] = world.draw.choice(("5", "3.1.1"))
    world.launch()
    world.sender.take(True)
    world.progress(20)
    proxy.limit = LARGE // 2
    world.sender.large = 1
    for fault in (faults.lose, faults.halve):
        world.progress(world.draw.randint(5, 20))
        fault(world)
    if not world.sender.until(world.sender.large_answered, 3 * PATIENCE):
        world.complain("the job with the large result was not answered")
    faults.kill(world)
    world.progress(20)
    outcome = world.conclude()
    log.counts["hang-up"] = len(proxy.hung_up)
    proxy.close()
    return outcome


def link_down(seed: int, log: FaultLog) -> Outcome:
    """`ip link set down` in a network of the device's own, shorter and longer than the keep-alive."""
    with places.network() as net:
        world = World("link down", seed, log, listen=net.address)
        world.device.env |= {"EDGED_MQTT__HOST": net.address, "EDGED_MQTT__PORT": str(world.broker.port)}
        world.device.inside(*net.command)
        world.launch()
        world.sender.take(True)
        for longest in (1.0, 10.0, 2.0, 10.0):
            world.progress(world.draw.randint(10, 60))
            seconds, outside = world.draw.uniform(0.8, 1.0) * longest, world.draw.random() < 0.5
            log.fault("link down", seconds=round(seconds, 1), outside=outside)
            net.down(seconds, outside)
        world.progress(20)
        return world.conclude()


def stopped(seed: int, log: FaultLog) -> Outcome:
    """SIGSTOP of three devices at a time, for longer than the broker waits for a sign of life."""
    world = World("SIGSTOP", seed, log, devices=3)
    world.launch()
    world.sender.take(True)
    for _ in range(2):
        world.progress(world.draw.randint(10, 60))
        faults.stop(world, KEEP_ALIVE * world.draw.uniform(1.7, 2.2), range(3))
    world.progress(20)
    return world.conclude()


def moved_clock(seed: int, log: FaultLog) -> Outcome:
    """The device's wall clock leaps, forwards past retention, ttl and deadlines, and back; and a new start under it."""
    library = next(iter(glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), None)
    if library is None:
        raise places.Skipped("libfaketime is not there (apt install faketime)")
    world = World("wall clock moved", seed, log)
    world.device.env |= {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(world.clock_file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        "CHAOS_CLOCK_TRUSTED": "1",
    }
    world.sender.deadlines = tuple(_in_days(days) for days in (10, 100, 4000))
    world.launch()
    world.sender.take(True)
    for days in (30, -3, 400, 0, -400, 30, 0, 400):
        world.progress(world.draw.randint(20, 60))
        faults.set_clock(world, days * DAY + world.draw.randint(-3600, 3600))
        world.progress(world.draw.randint(20, 60))
        if world.draw.random() < 0.5:
            faults.kill(world)
    world.progress(20)
    outcome = world.conclude()
    if not outcome.verdict.expired:
        outcome.verdict.wrong.append("no job's deadline passed")
    return outcome


def _in_days(days: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + days * DAY))


def bad_disk(seed: int, log: FaultLog) -> Outcome:
    """A small disk fills up, under a device that runs and one that starts, and turns read-only, and is given back."""
    with places.disk(16) as disk:
        world = World("disk full, read-only", seed, log)
        device = world.device
        device.env["EDGED_STATE_DIR"] = str(disk.path / "state")
        world.launch()
        world.sender.take(True)
        for how in ("full", "full, and a kill", "read-only", "full", "read-only"):
            world.progress(world.draw.randint(20, 60))
            log.fault(f"disk {how}")
            if how == "read-only":
                faults.break_disk(world, disk)
            else:
                disk.fill()
            said = device.until_fault("spool")
            log.note("said", fault=said)
            time.sleep(world.draw.uniform(0.5, 2.0))
            if how != "full":
                faults.kill(world)
                device.until_up_or_ended()
            if how != "read-only":
                disk.free()
            else:
                device.stop()
                disk.mend()
            if not device.runs:
                device.launch()
        world.progress(20)
        return world.conclude()


def group(seed: int, log: FaultLog) -> Outcome:
    """Three devices share the jobs, and everything befalls them."""
    world = World("three in a group", seed, log, devices=3)
    world.devices[1].env["EDGED_MQTT__PROTOCOL"] = "3.1.1"
    world.launch()
    world.sender.take(True)
    todo = ["kill"] * 8 + ["arm"] * 24 + ["broker"] * 8 + ["lose"] * 12 + ["halve"] * 4 + ["delay"] * 4 + ["stop"]
    world.draw.shuffle(todo)
    for what in todo:
        world.progress(world.draw.randint(2, 20), lambda: faults.revive(world))
        faults.revive(world)
        device = world.draw.randrange(3)
        if what == "arm":
            faults.arm(world, world.draw.choice(LIFE), device)
        elif what == "broker":
            faults.kill_broker(world)
        elif what == "stop":
            faults.stop(world, KEEP_ALIVE * 1.8, [device])
        else:
            getattr(faults, what)(world, device)
    for number in range(3):
        faults.kill(world, number)  # and so disarm
    world.progress(50)
    return world.conclude()


def one_leaves(seed: int, log: FaultLog) -> Outcome:
    """A device of the group dies with jobs that it accepted, stays away while the others go on, and comes back.

    What it accepted stays its own: nobody asks for it anew, and it is answered. What the sender gave up waiting for has
    two answers then, one of each device, and the first was the one that counted.
    """
    world = World("one of three leaves", seed, log, devices=3)
    sender, leaver = world.sender, world.devices[2]
    for device in world.devices[:2]:
        device.launch()
    sender.take(True)
    for _ in range(3):
        faults.kill_at(world, RUNNING, 2)
        log.fault("leaves", device=2)
        # All that it had published is here by then; and if every open job is its own, nothing else can come.
        wanted = sender.finished + 10
        if not sender.until(lambda seen=wanted: sender.finished >= seen or sender.all_owed_by(2), PATIENCE):
            world.complain(f"no result within {PATIENCE:.0f} s, with {len(sender.open_ids())} jobs open")
        owed = sender.owed(2)
        sender.ask_again()
        world.progress(world.draw.randint(100, 200))
        sender.take(False)
        if not sender.until(sender.drained, PATIENCE):
            world.complain(f"two of three did not answer {len(sender.open_ids())} jobs")
        twice = sender.answered_twice()
        leaver.launch()
        # What ran when it died was on disk, whether or not its `accepted` had left.
        if not sender.until(lambda before=twice: sender.answered_twice() > before, PATIENCE):
            world.complain("no job has an answer of the device that left beside another's")
        if not sender.until(lambda: not any(sender.owed(number) for number in range(3)), PATIENCE):
            world.complain(f"accepted and not answered: {[sender.owed(number) for number in range(3)]}")
        log.note("is back", owed=len(owed), answered_twice=sender.answered_twice() - twice)
        leaver.stop()
        sender.take(True)
    leaver.launch()
    world.progress(20)
    return world.conclude()


PHASES: dict[str, Callable[[int, FaultLog], Outcome]] = {
    "kill -9": kills,
    "kill -9, start and end": kills_at_ends,
    "broker, persistent": persistent_broker,
    "broker, forgetful": forgetful_broker,
    "bad network": bad_network,
    "large results": large_results,
    "link down": link_down,
    "SIGSTOP": stopped,
    "wall clock moved": moved_clock,
    "disk full, read-only": bad_disk,
    "three in a group": group,
    "one of three leaves": one_leaves,
}


def selftest(seed: int, log: FaultLog, sabotage: str) -> Outcome:
    """A short run of all that a sabotage can show in: kills, copies, and results that are lost on their way."""
    world = World(sabotage or "unsabotaged", seed, log, sabotage=sabotage)
    world.draw.seed(f"{seed}/selftest")  # the same whatever the sabotage
    world.sender.copies = 0.3
    world.sender.take(True)
    instants = LIFE * 3
    # Once every job that the sender may have open is lost, nothing moves any more.
    moving = all(faults.kill_at(world, instant) for instant in instants)
    world.launch()
    for _ in range(8 if moving else 0):
        world.progress(world.draw.randint(10, 30))
        faults.lose(world)
    return world.conclude(patience=10.0)
