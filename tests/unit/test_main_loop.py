"""The daemon's main loop, not started: what it takes out of its inbox."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edged import daemon as daemon_module
from edged.daemon import EVENTS, LOAD_SECONDS, STUCK_SECONDS, Daemon
from edged.jobs.crash import CrashLedger
from edged.jobs.spool import SpoolError
from edged.machine.storage import Mount
from edged.settings import Settings


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(Settings(state_dir=tmp_path, device={"id": "board"}, http={"port": 0}))  # type: ignore[arg-type]


def test_a_flood_of_events_is_taken_whole_and_in_order(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(daemon, "_take", taken.append)
    for n in range(2 * EVENTS + 500):
        daemon._inbox.put(n)  # type: ignore[arg-type]
    for _ in range(3):
        daemon._turn(0.0)
    assert taken == list(range(2 * EVENTS + 500))


class Aborted(BaseException):
    """In place of the end of the process that runs the tests."""


def test_a_hung_step_ends_the_process_and_is_told_in_log_health_and_to_the_next_process(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def abort() -> None:
        raise Aborted

    logged: list[str] = []
    monkeypatch.setattr(daemon_module.os, "abort", abort)
    monkeypatch.setattr(daemon_module.log, "error", lambda event, **_: logged.append(event))
    daemon._engine.busy_since = time.monotonic() - STUCK_SECONDS + 5
    daemon._turn(0.0)
    assert logged == []
    daemon._engine.busy_since = time.monotonic() - STUCK_SECONDS - 1
    assert any("a step of the model has taken 12" in fault for fault in daemon.alive_faults())
    assert any("a step of the model has taken 12" in fault for fault in daemon.ready_faults())
    with pytest.raises(Aborted):
        daemon._turn(0.0)
    assert logged == ["engine_stuck"]
    assert "a step of the model hung for 121 s" in str(CrashLedger(tmp_path, daemon._clock.boot_id()).last_end.crash)


def test_a_hung_load_ends_the_process_and_blames_no_job_whose_session_is_being_rebuilt(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def abort() -> None:
        raise Aborted

    monkeypatch.setattr(daemon_module.os, "abort", abort)
    daemon._ledger.write_running([7])
    daemon._engine.loading_since = time.monotonic() - LOAD_SECONDS - 1
    assert any("loading the model has taken 12" in fault for fault in daemon.alive_faults())
    with pytest.raises(Aborted):
        daemon._turn(0.0)
    end = CrashLedger(tmp_path, daemon._clock.boot_id()).last_end
    assert (end.crash, end.running) == ("loading the model hung for 121 s", ())


@pytest.mark.parametrize(("preparing", "blamed"), [(7, (7,)), (None, ())])
def test_a_prompt_that_is_prepared_for_ever_ends_the_process_and_is_to_blame(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preparing: int | None, blamed: tuple[int, ...]
) -> None:
    def abort() -> None:
        raise Aborted

    monkeypatch.setattr(daemon_module.os, "abort", abort)
    daemon._ledger.write_running([3])  # has a row, and nothing to do with it
    daemon._desk.preparing = preparing
    daemon._preparer.busy_since = time.monotonic() - STUCK_SECONDS - 1
    assert any("preparing a prompt has taken 12" in fault for fault in daemon.alive_faults())
    with pytest.raises(Aborted):
        daemon._turn(0.0)
    end = CrashLedger(tmp_path, daemon._clock.boot_id()).last_end
    assert (end.crash, end.running) == ("preparing a prompt hung for 121 s", blamed)


def test_what_threatens_the_card_is_told_at_the_start_and_a_throttled_board_when_it_begins(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(daemon_module.log, "warning", lambda event, **_: logged.append(event))
    monkeypatch.setattr(daemon_module, "mount_of", lambda *_: Mount(Path("/"), "tmpfs", "none", False))
    monkeypatch.setattr(daemon_module, "swaps_on_card", lambda _: ["/var/swap"])
    daemon._warn_of_the_disk()
    assert logged == ["state_dir_volatile", "memory_swapped_to_card"]
    logged.clear()
    states = [{}, {"throttled"}, {"throttled"}, {"throttled", "under_voltage"}, set(), {"throttled"}]
    for on in states:
        monkeypatch.setattr(daemon._board, "throttled", lambda on=on: dict.fromkeys(on, True))
        daemon._heartbeat()
    assert logged == ["board_throttled"] * 3


def test_a_sign_of_life_is_given_only_while_every_loop_moves(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    signs: list[None] = []
    monkeypatch.setattr(daemon._supervisor, "alive", lambda: signs.append(None))
    daemon._turn(0.0)
    assert len(signs) == 1
    daemon._engine.loading_since = time.monotonic() - LOAD_SECONDS + 5  # takes its time
    daemon._turn(0.0)
    assert len(signs) == 2
    daemon._engine.loading_since = None
    monkeypatch.setattr(daemon._link, "stood_still", lambda: STUCK_SECONDS + 1)
    daemon._turn(0.0)
    assert len(signs) == 2
    assert any("connection to the broker has stood still for 12" in fault for fault in daemon.ready_faults())


def test_a_spool_that_cannot_be_read_costs_one_event_and_not_the_daemon(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def take(event: Any) -> None:
        taken.append(event)
        if event == 1:
            raise SpoolError("input/output error")

    monkeypatch.setattr(daemon, "_take", take)
    for n in range(3):
        daemon._inbox.put(n)  # type: ignore[arg-type]
    daemon._turn(0.0)
    assert taken == [0, 1, 2]
