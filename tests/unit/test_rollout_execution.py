"""The states of a rollout on a device: what follows on what, and what outlives a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rollout_rig import DIGEST, OTHER, known, now, received

from edged.checked_json import DamagedError, checksum_of
from edged.faults import Fault
from edged.rollout.execution import MOST_FAILURES, MOST_LOADS, PACKAGE_PAUSE, Baseline, Execution, Package, State, Step
from edged.rollout.memory import Memory, read_memory, write_memory
from edged.rollout.precedence import Documents

BAD = Fault("rollout_package_failed", "wrong answers", "make it anew")
NEW = Package("phi3", DIGEST)
REFUSED = Fault("rollout_reload_refused", "mqtt.port = 0")


def begun(**fields: object) -> Execution:
    return Execution(known(**fields)).advance(now())


def loading() -> Execution:
    return begun().pulled(".packages/bb/phi3", Baseline(), now(60)).starting(now(61))


def proving() -> Execution:
    return loading().loaded(NEW, True, now(62))


def test_a_good_rollout_goes_from_queued_to_succeeded() -> None:
    execution = begun()
    assert (execution.state, execution.step, execution.pulls_now) == (State.IN_PROGRESS, Step.DOWNLOADING, True)
    execution = loading()
    assert (execution.state, execution.step, execution.candidate) == (
        State.IN_PROGRESS,
        Step.LOADING,
        ".packages/bb/phi3",
    )
    proving = execution.loaded(NEW, True, now(65))
    assert (proving.state, proving.step, proving.loads) == (State.IN_PROGRESS, Step.PROVING, 0)
    assert proving.loaded(NEW, True, now(66)) == proving
    done = proving.succeeded(now(70))
    assert (done.state, done.step, done.fault, done.since) == (State.SUCCEEDED, None, None, now(70).wall)
    assert done.advance(now(1e6)) == done


@pytest.mark.parametrize(
    ("fields", "circumstances", "waiting_for"),
    [
        ({"percent": 0}, {"percent": 0.0}, "percent"),
        ({"not_before": "2027-01-31T12:00:01Z"}, {}, "not_before"),
        ({"not_before": "2027-01-31T11:00:00Z"}, {"synchronised": False}, "clock"),
        ({"window": {"start": "11:00", "end": "12:00"}}, {}, "window"),
        ({"window": {"start": "11:00", "end": "13:00"}}, {"synchronised": False}, "clock"),
        ({"expires": "2027-01-01T00:00:00Z"}, {"synchronised": False}, "clock"),
        ({"window": {"start": "11:00", "end": "13:00"}}, {}, None),
        ({"expires": "2027-02-01T00:00:00Z", "not_before": "2027-01-31T11:00:00Z"}, {}, None),
    ],
)
def test_it_begins_when_it_may(fields: dict[str, object], circumstances: dict[str, object], waiting_for: str) -> None:
    execution = Execution(known(**fields)).advance(now(**circumstances))
    assert execution.waiting_for == waiting_for
    assert execution.state is (State.QUEUED if waiting_for else State.IN_PROGRESS)
    assert execution.since == now().wall


@pytest.mark.parametrize(
    ("fields", "circumstances", "state", "code"),
    [
        ({}, {"path_set": True}, State.REJECTED, "rollout_model_path_set"),
        ({"expires": "2027-01-31T12:00:00Z"}, {}, State.REJECTED, "desired_expired"),
        ({}, {"aborted": True}, State.CANCELED, "rollout_aborted"),
        ({}, {"serving": NEW}, State.SUCCEEDED, None),
    ],
)
def test_it_ends_without_work(
    fields: dict[str, object], circumstances: dict[str, object], state: State, code: str
) -> None:
    execution = Execution(known(**fields)).advance(now(**circumstances))
    assert (execution.state, execution.step) == (state, None)
    assert (execution.fault.code if execution.fault else None) == code


def test_a_download_that_takes_too_long_times_out_with_its_last_fault() -> None:
    execution = begun(timeout=100)
    failed = execution.advance(now(50)).pull_failed(Fault("rollout_pull_failed", "no route"), now(50))
    assert (failed.state, failed.waiting_for, failed.pulls_now) == (State.IN_PROGRESS, "retry", False)
    again = failed.advance(now(60))
    assert again.pulls_now
    late = again.advance(now(100))
    assert (late.state, late.step) == (State.TIMED_OUT, None)
    assert late.fault is not None
    assert late.fault.code == "rollout_timed_out"
    assert "no route" in late.fault.message


def test_the_time_of_a_download_counts_over_restarts_and_not_while_the_board_is_off() -> None:
    halfway = replace(begun(timeout=100).advance(now(90)), counted_at=None)
    after = halfway.advance(now(100_000))
    assert (after.state, after.seconds) == (State.IN_PROGRESS, 90.0)
    assert after.advance(now(100_010)).state is State.TIMED_OUT


def test_a_package_that_comes_after_its_window_waits_for_the_next() -> None:
    execution = begun(window={"start": "11:00", "end": "12:30"})
    late = execution.pulled("x", Baseline(), now(3600))
    assert (late.state, late.step, late.waiting_for) == (State.QUEUED, None, "window")
    assert late.advance(now(86400)).pulls_now  # which finds the package on the disk


def test_a_package_that_fails_goes_back_three_times_and_is_rejected() -> None:
    execution, at = begun(), 0.0
    for failures in range(1, MOST_FAILURES + 1):
        failed = execution.pulled("x", Baseline(), now(at)).starting(now(at)).package_failed(BAD, now(at))
        assert (failed.step, failed.switching, failed.candidate) == (Step.RETURNING, True, "x")
        execution = failed.returned(now(at))
        assert (execution.failures, execution.step, execution.fault) == (failures, None, BAD)
        if failures < MOST_FAILURES:
            assert execution.state is State.FAILED
            assert execution.advance(now(at + PACKAGE_PAUSE - 1)) == execution
            at += PACKAGE_PAUSE
            execution = execution.advance(now(at))
            assert execution.pulls_now
    assert execution.state is State.REJECTED
    assert execution.advance(now(1e7)) == execution


def test_the_pause_after_a_failure_outlives_the_restart_that_follows_from_it() -> None:
    failed = loading().package_failed(BAD, now())
    started = replace(failed, retry_at=None).starting(now(5)).returned(now(5))
    assert started.advance(now(PACKAGE_PAUSE)).state is State.FAILED
    assert started.advance(now(PACKAGE_PAUSE + 5)).pulls_now
    settled = replace(failed.returned(now()), retry_at=None).starting(now(5))
    assert settled.advance(now(PACKAGE_PAUSE)).state is State.FAILED


def test_failures_of_the_network_are_none_of_the_package() -> None:
    execution, at = begun(timeout=30 * 86400), 0.0
    for _ in range(20):
        execution = execution.pull_failed(Fault("rollout_pull_failed", "no route"), now(at))
        at += 301
        execution = execution.advance(now(at))
        assert execution.pulls_now
        assert execution.warning == Fault("rollout_pull_failed", "no route")
    assert execution.failures == 0


def test_pauses_between_pulls_grow_to_five_minutes() -> None:
    execution, at, pauses = begun(timeout=30 * 86400), 0.0, []
    for _ in range(6):
        execution, began = execution.pull_failed(Fault("rollout_pull_failed", "no route"), now(at)), at
        while not execution.pulls_now:
            at += 1.0
            execution = execution.advance(now(at))
        pauses.append(at - began)
    assert pauses == [10, 30, 60, 300, 300, 300]


def test_a_package_that_ends_every_process_is_given_up() -> None:
    execution = begun().pulled("x", Baseline(), now())
    for _ in range(MOST_LOADS):
        execution = execution.starting(now())
        assert execution.step is Step.LOADING
    failed = execution.starting(now())
    assert (failed.state, failed.step, failed.failures) == (State.FAILED, Step.RETURNING, 1)


def test_a_package_without_known_answers_or_with_another_digest_fails() -> None:
    unproved = loading().loaded(NEW, False, now())
    other = loading().loaded(Package("phi3", OTHER), True, now())
    assert [one.fault.code for one in (unproved, other) if one.fault] == [
        "rollout_package_failed",
        "rollout_digest_wrong",
    ]
    assert unproved.step is other.step is Step.RETURNING


def test_an_abort_ends_a_download_at_once_and_a_load_once_it_is_over() -> None:
    assert begun().advance(now(1, aborted=True)).state is State.CANCELED
    execution = loading()
    assert execution.advance(now(1, aborted=True)) == execution
    for on_trial in (execution, proving()):
        canceled = on_trial.loaded(NEW, True, now(aborted=True))
        assert (canceled.state, canceled.step) == (State.CANCELED, Step.RETURNING)
    done = proving().succeeded(now())
    assert done.advance(now(1, aborted=True)) == done


def test_another_document_begins_anew_and_a_larger_wave_does_not() -> None:
    failed = begun().package_failed(BAD, now())
    assert failed.follow(known(percent=7), now()).failures == 1
    assert failed.follow(known(sequence=2), now()) == Execution(known(sequence=2))


def test_a_document_that_comes_during_the_trial_ends_it_unless_it_wants_the_same_package() -> None:
    same = proving().follow(known(sequence=2, timeout=7), now(80))
    assert (same.step, same.desired.timeout, same.candidate) == (Step.PROVING, 7, proving().candidate)
    other = proving().follow(known(sequence=2, model={"source": "/media/stick/phi3", "digest": OTHER}), now(80))
    assert (other.state, other.step) == (State.CANCELED, Step.RETURNING)
    assert other.returned(now(81)).follow(known(sequence=2), now(90)) == Execution(known(sequence=2))


def test_time_on_trial_counts_while_it_serves_over_restarts() -> None:
    execution = proving().serves(now(70)).serves(now(100))
    assert execution.proved == 30.0
    restarted = replace(execution, counted_at=None).starting(now(5000))
    assert (restarted.step, restarted.proved) == (Step.PROVING, 30.0)
    assert restarted.serves(now(5000)).serves(now(5010)).proved == 40.0


def test_a_crash_on_trial_is_the_packages_fault_at_once_and_other_ends_are_counted() -> None:
    for on_trial in (loading(), proving()):
        crashed = on_trial.starting(now(4000), crash="Fatal Python error: Segmentation fault")
        assert (crashed.state, crashed.step, crashed.failures) == (State.FAILED, Step.RETURNING, 1)
        assert crashed.fault is not None
        assert "Segmentation fault" in crashed.fault.message
    cut = proving()
    for _ in range(MOST_LOADS):
        cut = cut.starting(now())
        assert cut.step is Step.PROVING
    assert cut.starting(now()).step is Step.RETURNING
    assert cut.stopping().starting(now()).step is Step.PROVING  # an end in order is none of the package's making
    assert begun().starting(now(), crash="Aborted") == begun()


def test_a_refused_reload_is_no_failure_of_the_package() -> None:
    refused = begun().pulled("x", Baseline(), now()).switch_failed(REFUSED, now())
    assert (refused.state, refused.step, refused.failures) == (State.FAILED, Step.RETURNING, 0)
    assert refused.returned(now()).advance(now(PACKAGE_PAUSE)).pulls_now


# What is kept


def kept(memory: Memory, folder: Path) -> Memory:
    write_memory(folder / "rollout.json", memory)
    return read_memory(folder / "rollout.json")


def test_what_is_remembered_is_read_as_it_was_written(tmp_path: Path) -> None:
    raised = Documents().take(received("group/a", percent=50))
    documents = raised.take(received("group/a", percent=5)).withdraw("group/a")
    assert documents.known["group/a"].percent == 50.0
    baseline = Baseline(0.25, ("heat", "memory"))
    execution = replace(loading(), baseline=baseline, speed=0.9, proved=7.0).package_failed(BAD, now())
    memory = Memory(documents, execution, Package("old", None))
    assert kept(memory, tmp_path) == replace(memory, execution=replace(execution, retry_at=None, counted_at=None))
    assert read_memory(tmp_path / "none") == Memory()


def test_a_damaged_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    write_memory(path, Memory(execution=loading()))
    text = path.read_text()
    for damaged in (text.replace("IN_PROGRESS", "SUCCEEDED"), text[:-20], "", "[]", "{}", "\0", "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(DamagedError):
            read_memory(path)
    path.write_bytes(text.encode().replace(b"phi3", b"ph\xff3", 1))
    with pytest.raises(DamagedError):
        read_memory(path)


@pytest.mark.parametrize(("field", "value"), [("state", "PAUSED"), ("step", "charging")])
def test_a_memory_of_a_newer_edged_is_refused(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "rollout.json"
    write_memory(path, Memory(execution=loading()))
    fields = json.loads(path.read_text())
    fields["execution"][field] = value
    del fields["crc32"]
    path.write_text(json.dumps({**fields, "crc32": checksum_of(fields)}))
    with pytest.raises(DamagedError):
        read_memory(path)


class AnyLife(RuleBasedStateMachine):
    """Whatever happens in whatever order, with kills in between: the board serves a proved package in the end."""

    @initialize()
    def begin(self) -> None:
        self.at = 0.0
        self.execution = Execution(known(timeout=1000))
        self.proved = False
        self.selected, self.before = "old", "none"
        """What the links of the store name."""

    @rule(seconds=st.sampled_from([1.0, 60.0, PACKAGE_PAUSE]), aborted=st.booleans())
    def time_passes(self, seconds: float, aborted: bool) -> None:
        self.at += seconds
        self.execution = self.execution.advance(now(self.at, aborted=aborted))

    @rule(fails=st.sampled_from([None, "network", "package"]))
    def pull_ends(self, fails: str | None) -> None:
        if not self.execution.pulls_now:
            return
        if fails == "network":
            self.execution = self.execution.pull_failed(BAD, now(self.at))
        elif fails == "package":
            self.execution = self.execution.package_failed(BAD, now(self.at))
        else:
            self.execution = self.execution.pulled("new", Baseline(), now(self.at))
            if self.execution.step is Step.LOADING:
                self.selected, self.before = "new", self.selected

    @rule(crash=st.sampled_from([None, "Aborted"]))
    def killed(self, crash: str | None) -> None:
        """The process starts anew, with what the file has, and puts the links as the step wants them."""
        self.execution = replace(self.execution, retry_at=None, counted_at=None, pulls=0).starting(now(self.at), crash)
        if self.execution.step is Step.RETURNING:
            self.selected = self.before
            self.execution = self.execution.returned(now(self.at))

    @rule(right=st.booleans(), aborted=st.booleans())
    def load_ends(self, right: bool, aborted: bool) -> None:
        if self.execution.step is not Step.LOADING:
            return
        if right:
            self.execution = self.execution.loaded(NEW, True, now(self.at, aborted=aborted))
        else:
            self.execution = self.execution.package_failed(BAD, now(self.at))

    @rule(right=st.booleans())
    def trial_ends(self, right: bool) -> None:
        if self.execution.step is Step.PROVING:
            self.proved = self.proved or right
            self.execution = (
                self.execution.succeeded(now(self.at)) if right else self.execution.package_failed(BAD, now(self.at))
            )

    @rule(sequence=st.integers(1, 3), digest=st.sampled_from([DIGEST, "ef" * 32]))
    def another_document(self, sequence: int, digest: str) -> None:
        if self.execution.step in (None, Step.DOWNLOADING, Step.PROVING):
            other = known(sequence=sequence, timeout=1000, model={"source": "/media/stick/phi3", "digest": digest})
            self.execution = self.execution.follow(other, now(self.at))

    @invariant()
    def what_is_selected_is_proved_or_can_be_left(self) -> None:
        execution = self.execution
        if not execution.switching and execution.state is not State.SUCCEEDED and not self.proved:
            assert self.selected == "old"
        assert execution.switching <= (execution.candidate is not None)
        assert execution.failures <= MOST_FAILURES
        assert execution.loads <= MOST_LOADS
        assert (execution.step is Step.DOWNLOADING) <= (execution.state is State.IN_PROGRESS)
        assert (execution.step is Step.RETURNING) <= (execution.fault is not None)


AnyLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestAnyLife = AnyLife.TestCase
