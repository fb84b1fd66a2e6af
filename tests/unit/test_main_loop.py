"""The daemon's main loop, not started: built from real parts and turned by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edged import announcer, app
from edged.announcer import Announcer
from edged.daemon import EVENTS, Daemon, Parts
from edged.engine.events import ModelChanged
from edged.faults import Fault
from edged.jobs.manager import JobManager
from edged.jobs.schema import SpoolError
from edged.machine.sensors.quantities import THROTTLED
from edged.machine.sensors.readings import Reading, Readings
from edged.machine.storage import Mount
from edged.mqtt.events import DeviceIdFree, DeviceIdTaken, LinkDown, LinkUp, Published
from edged.mqtt.link import Link
from edged.report.supervisor import Supervisor
from edged.settings import Settings
from edged.startup import StartError

Build = Callable[..., Daemon]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, device={"id": "board"}, http={"port": 0})  # type: ignore[arg-type]


@pytest.fixture
def parts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """What build() gives the daemon; a test makes the daemon of it, perhaps with some of them replaced."""
    made: list[Parts] = []

    def keep(parts: Parts) -> Daemon:
        made.append(parts)
        return Daemon(parts)

    monkeypatch.setattr(app, "Daemon", keep)
    app.build(settings)
    return made[0]


def codes(daemon: Daemon) -> list[str]:
    return [fault.code for fault in daemon.status.faults]


def test_a_flood_of_events_is_taken_whole_and_in_order(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(JobManager, "published", lambda _self, event: taken.append(event.token))
    daemon = Daemon(parts)
    for n in range(2 * EVENTS + 500):
        parts.inbox.put(Published(n))
    for _ in range(3):
        daemon.turn(0.0)
    assert taken == list(range(2 * EVENTS + 500))


def test_a_spool_that_cannot_be_read_costs_one_event_and_not_the_daemon(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def published(_self: JobManager, event: Published) -> None:
        taken.append(event.token)
        if event.token == 1:
            raise SpoolError("input/output error")

    monkeypatch.setattr(JobManager, "published", published)
    daemon = Daemon(parts)
    for n in range(3):
        parts.inbox.put(Published(n))
    daemon.turn(0.0)
    assert taken == [0, 1, 2]


def test_each_turn_makes_a_snapshot_that_names_what_is_missing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(parts)
    assert codes(daemon) == ["model_loading", "broker_not_connected"]
    refused = Fault("mqtt_connection_refused", "no broker listens there", "start it")
    for broker in ("127.0.0.1:1883", "two:1883"):
        parts.inbox.put(LinkDown("control", refused, broker=broker))
    parts.inbox.put(ModelChanged("unavailable", "model.onnx is cut"))
    daemon.turn(0.0)
    assert [fault.message for fault in daemon.status.faults] == [
        "model unavailable: model.onnx is cut",
        "broker 127.0.0.1:1883 not connected: no broker listens there",
        "broker two:1883 not connected: no broker listens there",
    ]
    parts.inbox.put(LinkUp("control", False, "5"))
    link_status = Link.status
    monkeypatch.setattr(Link, "status", lambda self: replace(link_status(self), refused=("edged/v1/device/board/job",)))
    daemon.turn(0.0)
    assert codes(daemon) == ["model_unavailable", "mqtt_subscription_refused"]
    parts.inbox.put(DeviceIdTaken("other"))
    daemon.turn(0.0)
    assert codes(daemon) == ["model_unavailable", "device_id_taken"]
    parts.inbox.put(DeviceIdFree())
    daemon.turn(0.0)
    assert codes(daemon) == ["model_unavailable", "mqtt_subscription_refused"]
    daemon.stop()
    daemon.turn(0.0)
    assert codes(daemon)[0] == "draining"


class Signs(Supervisor):
    """Counts signs of life."""

    given = 0

    def alive(self) -> None:
        self.given += 1


def test_a_sign_of_life_is_given_only_while_the_connection_moves(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    signs = Signs()
    daemon = Daemon(replace(parts, supervisor=signs))
    daemon.turn(0.0)
    assert signs.given == 1
    moving = Link.status
    monkeypatch.setattr(Link, "status", lambda self: replace(moving(self), stalled_seconds=121.0))
    daemon.turn(0.0)
    assert signs.given == 1
    assert [fault.code for fault in daemon.status.stalled] == ["link_stalled"]


def test_a_board_near_a_limit_is_told_to_all(parts: Parts) -> None:
    told: list[str] = []

    class Told(Supervisor):
        def status(self, text: str) -> None:
            told.append(text)

    supervisor = Told()
    announcing = Announcer(
        parts.link, parts.jobs.outbox, supervisor, parts.settings, parts.board, lambda: parts.sampler.readings, "board"
    )
    daemon = Daemon(replace(parts, announcer=announcing))
    daemon.turn(0.0)
    assert [warning.code for warning in daemon.status.warnings] == []
    weak = Reading(1.0, time.monotonic())
    parts.sampler.readings = Readings({THROTTLED: {("under_voltage",): weak}})
    daemon = Daemon(replace(parts, announcer=announcing))  # whose next turn ticks at once
    daemon.turn(0.0)
    (warning,) = daemon.status.warnings
    assert (warning.code, "stronger power supply" in warning.hint) == ("board_limited", True)
    assert told[-1].endswith(", held back for power_supply")
    lines = parts.metrics.text().decode().splitlines()
    assert 'edged_governor_limited{reason="power_supply"} 1.0' in lines
    assert "edged_governor_duty_ratio 1.0" in lines


def test_a_throttled_board_is_logged_when_it_begins(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(announcer.log, "warning", lambda event, **_: logged.append(event))
    states: list[set[str]] = [set(), {"throttled"}, {"throttled"}, {"throttled", "under_voltage"}, set(), {"throttled"}]
    readings = Readings()
    announcing = Announcer(
        parts.link, parts.jobs.outbox, parts.supervisor, parts.settings, parts.board, lambda: readings, "board"
    )
    for on in states:
        values = {
            (reason,): Reading(float(reason in on), time.monotonic()) for reason in ("throttled", "under_voltage")
        }
        readings = Readings({THROTTLED: values})
        announcing.heartbeat(parts.latest.current)
    assert logged == ["board_throttled"] * 3


def test_storage_that_loses_jobs_or_wears_out_the_card_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(announcer.log, "warning", lambda event, **_: logged.append(event))
    monkeypatch.setattr(announcer, "mount_of", lambda *_: Mount(Path("/"), "tmpfs", "none", False))
    monkeypatch.setattr(announcer, "swaps_on_card", lambda _: ["/var/swap"])
    announcer.warn_about_storage(tmp_path, tmp_path)
    assert logged == ["state_dir_volatile", "memory_swapped_to_card"]


def test_a_start_that_fails_leaves_state_dir_for_the_next_one(settings: Settings, parts: Parts, tmp_path: Path) -> None:
    http = settings.http.model_copy(update={"port": parts.http.port})
    other = settings.model_copy(update={"state_dir": tmp_path / "other", "http": http})
    for _ in range(2):
        with pytest.raises(StartError, match=r"http\.port"):  # and not: another edged runs there
            app.build(other)
    with pytest.raises(StartError, match="another edged runs on"):
        app.build(settings)
