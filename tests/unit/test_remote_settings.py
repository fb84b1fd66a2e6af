"""Settings that rollouts set: which ones, where they stand among the sources, and what is on the disk at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rollout_rig import DIGEST, OTHER, known, now, received
from test_settings import clean_surroundings  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from edged.checked_json import checksum_of
from edged.cli.config import config
from edged.cli.doctor import remote_settings
from edged.machine.clock import Clock
from edged.models.store import store_of
from edged.rollout.execution import Baseline, Execution, Package, State, Step
from edged.rollout.memory import FILE as MEMORY
from edged.rollout.memory import Memory, read_memory, write_memory
from edged.rollout.remote_settings import RemoteSettings, reported_settings, warnings
from edged.rollout.resume import resume, settle
from edged.settings import Loaded, Settings, SettingsError, load
from edged.settings.remote import FILE, NAMES, UNNOTICED, Kept, Remote, check, read_kept, write_kept

OLD = {"model.rows": Remote(1, "r0"), "device.groups": Remote(["hall"], "own")}
NEW = {"model.rows": 2, "log.level": "debug"}
SERVING = Package("old", OTHER)


def set_remotely(state_dir: Path, serving: dict[str, Remote], before: dict[str, Remote] | None = None) -> None:
    state_dir.mkdir(exist_ok=True)
    write_kept(state_dir, Kept(serving, before))


# Values


def test_values_are_checked_as_those_of_the_file_are() -> None:
    values = {"device.groups": ["a", "b"], "model.rows": 2.0, "power.budget_watts": 5, "log.level": "debug"}
    assert check(values) == {**values, "model.rows": 2}
    assert isinstance(check(values)["model.rows"], int)
    assert check({}) == {}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("model.rows", 0, "model.rows = 0: must be a whole number from 1 to 64"),
        ("model.rows", "2", "model.rows = 2: must be a whole number from 1 to 64"),
        ("model.rows", True, "model.rows = true: must be a whole number"),
        ("model.rows", None, "model.rows = null: must be a whole number"),
        ("model.rows", 2.5, "model.rows = 2.5: must be a whole number"),
        ("log.level", "loud", 'log.level = loud: must be "debug", "info", "warning" or "error"'),
        ("device.groups", "a,b", "device.groups = a,b: must be a list of names"),
        ("device.groups", ["a/b"], 'device.groups = ["a/b"]: must be a list of names'),
        ("power.budget_watts", float("nan"), "power.budget_watts = NaN: must be a number"),
        ("cache.ram_byte", 1, "cache.ram_byte: no such setting; did you mean cache.ram_bytes?"),
        ("mqtt.password", "hunter2", "mqtt.password cannot be set from afar, only device.groups, model.rows"),
        ("fleet.unsigned", True, "fleet.unsigned cannot be set from afar"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(name: str, value: Any, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check({name: value})
    assert str(refused.value).startswith(told)
    assert "hunter2" not in str(refused.value)


def test_nothing_can_be_set_from_afar_that_leads_elsewhere() -> None:
    assert not [name for name in NAMES if name.startswith(("mqtt.", "fleet.", "http.", "state_dir"))]
    assert not [name for name in NAMES if isinstance(load().value(name), Path)]
    assert set(NAMES) >= UNNOTICED


# Among the sources


def test_a_rollout_is_stronger_than_the_file_and_the_environment_than_a_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edged.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n[model]\nrows = 3\ncontext = 512\n[jobs]\nretention = 9\n')
    set_remotely(
        tmp_path / "state",
        {"model.rows": Remote(2, "r1"), "jobs.retention": Remote(60, "r1"), "log.level": Remote("debug", "r2")},
    )
    monkeypatch.setenv("EDGED_JOBS__RETENTION", "7")
    loaded = load(file, {"log": {"level": "error"}})
    model, jobs = loaded.settings.model, loaded.settings.jobs
    assert (model.rows, model.context, jobs.retention, loaded.settings.log.level) == (2, 512, 7, "error")
    assert loaded.origins["model.rows"] == "rollout r1"
    assert loaded.origins["model.context"] == str(file)
    assert {name: loaded.origins[name] for name in loaded.overridden} == {
        "jobs.retention": "EDGED_JOBS__RETENTION",
        "log.level": "--log-level",
    }
    told = reported_settings(loaded)
    assert set(told) == set(NAMES)
    assert told["model.rows"] == {"value": 2, "from": "rollout r1"}
    overrides = {"value": 60, "from": "rollout r1"}
    assert told["jobs.retention"] == {"value": 7, "from": "EDGED_JOBS__RETENTION", "overrides": overrides}
    (warning,) = warnings(loaded)
    assert warning.code == "rollout_settings_overridden"
    assert "jobs.retention is set by EDGED_JOBS__RETENTION, which overrides rollout r1" in warning.message


def test_what_does_not_fit_the_boards_own_settings_is_left_out_and_said(tmp_path: Path) -> None:
    file = tmp_path / "edged.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n[power]\nidle_watts = 10\nbusy_watts = 20\n')
    set_remotely(
        tmp_path / "state", {"power.budget_joules_per_day": Remote(5000.0, "r1"), "model.rows": Remote(2, "r1")}
    )
    loaded = load(file)
    assert (loaded.settings.power.budget_joules_per_day, loaded.settings.model.rows) == (None, None)
    assert loaded.left_out is not None
    assert "power.budget_joules_per_day = 5000.0 (from rollout r1): must be more than the 864000 J" in loaded.left_out
    assert [fault.code for fault in warnings(loaded)] == ["rollout_settings_refused"]
    (finding,) = remote_settings(loaded)
    assert finding.state == "warn"
    file.write_text(file.read_text() + "[http]\nport = -1\n")
    with pytest.raises(SettingsError, match=r"http\.port = -1"):
        load(file)


def _rewritten(text: str, **changes: Any) -> str:
    fields = {**json.loads(text), **changes}
    del fields["crc32"]
    return json.dumps({**fields, "crc32": checksum_of(fields)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("debug", "error"),
        lambda text: text[:-20],
        lambda _text: "",
        lambda _text: "[]",
        lambda text: _rewritten(text, format=2),
        lambda text: _rewritten(text, settings={"model.rows": {"value": 0, "rollout": "r"}}),
        lambda text: _rewritten(text, settings={"fleet.unsigned": {"value": True, "rollout": "r"}}),
        lambda text: _rewritten(text, settings={"model.rows": 2}),
    ],
)
def test_a_damaged_file_is_said_and_the_board_starts_with_its_own(tmp_path: Path, damage: Callable[[str], str]) -> None:
    set_remotely(tmp_path, {"log.level": Remote("debug", "r1")})
    file = tmp_path / FILE
    file.write_text(damage(file.read_text()))
    loaded = load(None, {"state_dir": tmp_path})
    assert loaded.settings.log.level == "info"
    assert loaded.left_out is not None
    assert loaded.left_out.startswith(str(file))


def test_config_and_doctor_show_what_is_from_afar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_remotely(tmp_path, {"model.rows": Remote(2, "r1"), "jobs.retention": Remote(60, "r1")})
    monkeypatch.setenv("EDGED_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("EDGED_JOBS__RETENTION", "7")
    command = typer.Typer()
    command.command()(config)
    lines = CliRunner().invoke(command, ["--config", "/dev/null"]).stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(("model.rows ", "jobs.retention "))] == [
        "= 2 (from rollout r1)",
        "= 7 (from EDGED_JOBS__RETENTION, overrides 60 from rollout r1)",
    ]
    shown = json.loads(CliRunner().invoke(command, ["--json", "--config", "/dev/null"]).stdout)
    assert shown["jobs.retention"]["overrides"] == {"value": 60, "from": "rollout r1"}
    (finding,) = remote_settings(load(Path("/dev/null")))
    assert finding.message == (
        "from rollouts: model.rows = 2 (rollout r1), "
        "jobs.retention = 60 (rollout r1; EDGED_JOBS__RETENTION overrides it)"
    )
    assert not list(remote_settings(Loaded(Settings())))


# On the disk


class Board:
    """A state_dir with a package `old` that serves, and another in place."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state_dir=folder)
        self.store = store_of(self.settings)
        for version in ("a/old", "b/new"):
            (self.store.folder / ".packages" / version).mkdir(parents=True)
        (self.store.folder / "old").symlink_to(".packages/a/old")
        self.store.select("old")
        write_kept(folder, Kept(OLD))

    @property
    def folder(self) -> Path:
        return self.settings.state_dir

    def remote(self) -> RemoteSettings:
        return RemoteSettings(self.folder, lambda _remote: Loaded(self.settings))

    def start(self) -> tuple[Memory, Kept]:
        """What a start leaves."""
        memory = resume(self.settings, Clock(), "board", None, self.remote())
        assert read_memory(self.folder / MEMORY).execution == replace(memory.execution, retry_at=None)  # type: ignore[type-var]
        return memory, read_kept(self.folder)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def trying(**fields: Any) -> Execution:
    wanted = {"model": {"source": "/media/stick/new", "digest": DIGEST}, "settings": NEW, **fields}
    return Execution(known(**wanted)).advance(now()).pulled(".packages/b/new", Baseline(), now())


WANTED = {name: Remote(value, "r1") for name, value in NEW.items()}


def test_a_document_of_the_device_replaces_all_and_one_of_a_group_leaves_the_groups(board: Board) -> None:
    remote = board.remote()
    assert remote.wanted(received(settings=NEW)) == WANTED
    assert remote.wanted(received("group/hall", settings=NEW)) == {**WANTED, "device.groups": OLD["device.groups"]}
    assert remote.wanted(received(settings={})) == {}
    assert remote.wanted(received()) == OLD
    assert remote.changes(received(settings=NEW)) == {"model.rows", "log.level", "device.groups"}
    assert remote.changes(received(settings={"model.rows": 1, "device.groups": ["hall"]})) == frozenset()


@pytest.mark.parametrize("done", range(3))
def test_a_power_cut_in_a_switch_ends_with_new_settings_and_the_new_package(board: Board, done: int) -> None:
    execution = trying()
    write_memory(board.folder / MEMORY, Memory(execution=execution))
    steps = [lambda: board.store.try_out(".packages/b/new"), lambda: board.remote().try_out(execution.known.received)]
    for step in steps[:done]:
        step()
    memory, kept = board.start()
    assert memory.execution is not None
    assert memory.execution.step is Step.LOADING
    assert kept == Kept(WANTED, OLD)
    assert (board.store.folder / "current").resolve().name == "new"


@pytest.mark.parametrize("done", range(3))
def test_a_power_cut_while_it_goes_back_ends_with_the_old_ones(board: Board, done: int) -> None:
    execution = trying()
    settle(execution, board.store, board.remote(), now())
    failed = execution.switch_failed(warnings(Loaded(Settings(), left_out="x"))[0], now())
    write_memory(board.folder / MEMORY, Memory(execution=failed))
    for step in [lambda: board.remote().go_back(), lambda: board.store.go_back()][:done]:
        step()
    memory, kept = board.start()
    assert memory.execution is not None
    assert (memory.execution.state, memory.execution.step) == (State.FAILED, None)
    assert kept == Kept(OLD)
    assert (board.store.folder / "current").resolve().name == "old"


@pytest.mark.parametrize("done", range(3))
def test_a_power_cut_after_the_proof_ends_with_the_new_ones_for_good(board: Board, done: int) -> None:
    execution = trying()
    settle(execution, board.store, board.remote(), now())
    write_memory(board.folder / MEMORY, Memory(execution=execution.succeeded(now())))
    received_ = execution.known.received
    for step in [lambda: board.store.adopt(".packages/b/new"), lambda: board.remote().adopt(received_)][:done]:
        step()
    memory, kept = board.start()
    assert memory.execution is not None
    assert (memory.execution.state, memory.execution.candidate) == (State.SUCCEEDED, None)
    assert kept == Kept(WANTED)
    (board.folder / FILE).write_text("damaged later")
    assert board.start()[1] == Kept(WANTED)


def test_a_lost_memory_ends_the_trial_of_settings_too(board: Board) -> None:
    settle(trying(), board.store, board.remote(), now())
    (board.folder / MEMORY).write_text("lost")
    assert resume(board.settings, Clock(), "board", None, board.remote()) == Memory()
    assert read_kept(board.folder) == Kept(OLD)


# The way of settings alone


def alone(**circumstances: Any) -> Execution:
    changed = {"settings_changed": True, "serving": SERVING, **circumstances}
    return Execution(known(model=None, settings=NEW)).advance(now(**changed))


def test_settings_alone_need_no_download_and_take_back_nothing_of_the_package() -> None:
    execution = alone(path_set=True)
    assert (execution.state, execution.step, execution.pulls_now) == (State.IN_PROGRESS, Step.CHECKING, False)
    assert execution.advance(now(10**7)) == execution  # `timeout` is for a download
    assert execution.advance(now(1, aborted=True)).state is State.CANCELED
    loading = execution.pulled(None, Baseline(), now(2)).starting(now(3))
    assert (loading.step, loading.candidate) == (Step.LOADING, None)
    assert loading.path_was_set(now(4)) == loading
    proving = loading.loaded(SERVING, False, now(5))  # a package that served needs no known answers
    assert (proving.step, proving.proving_seconds) == (Step.PROVING, 600)
    assert proving.succeeded(now(6)).state is State.SUCCEEDED
    assert execution.pulled(None, Baseline(), now(2), proves=False).proving_seconds == 0


def test_settings_that_hold_already_end_at_once() -> None:
    assert alone(settings_changed=False).state is State.SUCCEEDED
    both = Execution(known(settings=NEW))
    there = {"serving": Package("phi3", DIGEST)}
    assert both.advance(now(**there)).state is State.SUCCEEDED
    assert both.advance(now(**there, settings_changed=True)).step is Step.CHECKING
    assert both.advance(now(settings_changed=True)).step is Step.DOWNLOADING


def test_another_document_ends_the_trial_unless_it_wants_the_same_settings() -> None:
    proving = alone().pulled(None, Baseline(), now(2)).loaded(SERVING, True, now(3))
    same = proving.follow(known(model=None, settings=NEW, sequence=2), now(4))
    assert (same.step, same.known.sequence) == (Step.PROVING, 2)
    others = known(model=None, settings={"model.rows": 3}, sequence=2), known("group/hall", model=None, settings=NEW)
    for other in (proving.follow(one, now(4)) for one in others):
        assert (other.state, other.step) == (State.CANCELED, Step.RETURNING)
