"""Commands over MQTT as values: what a message asks, who may ask, what is remembered, and what is answered."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from edged.checked_json import DamagedError
from edged.commands.answer import answer
from edged.commands.document import NAMES, Code, Failure, RefusedError, check_command, read_command
from edged.commands.memory import (
    Entry,
    Memory,
    Status,
    TransitionError,
    read_memory,
    write_memory,
)
from edged.commands.reading import Action, Message, Now, decide, refused, taken
from edged.commands.signing import sign
from edged.machine.clock import format_time
from edged.settings.fleet import FleetSettings

NOW = 1_800_000_000.0
LATER = format_time(NOW + 600)
OPEN = FleetSettings(commands=["logs", "doctor", "restart", "forget"])


def document(**fields: Any) -> dict[str, Any]:
    return {"status": "init", "expires": LATER, **fields}


def message(
    name: str = "logs", id: str = "c1", own: bool = True, payload: bytes | None = None, **fields: Any
) -> Message:
    target = "device/pi" if own else "group/hall"
    payload = json.dumps(document(**fields)).encode() if payload is None else payload
    return Message(f"edged/v1/{target}/cmd/{name}/{id}", name, id, own, payload)


def decided(
    sent: Message, memory: Memory | None = None, fleet: FleetSettings = OPEN, synchronised: bool = True, at: float = NOW
) -> tuple[Action, Code | None]:
    decision = decide(sent, memory or Memory(), (), fleet, Now(at, synchronised))
    return decision.action, None if decision.failure is None else decision.failure.code


def test_an_allowed_command_runs_with_its_fields_and_defaults() -> None:
    decision = decide(message(lines=7), Memory(), (), OPEN, Now(NOW, True))
    assert decision.action is Action.RUN
    assert decision.command is not None
    assert decision.command.fields == {"lines": 7, "level": "info"}
    assert decided(message("forget", all=True)) == (Action.RUN, None)


def test_commands_are_off_unless_the_settings_allow_them() -> None:
    for name in NAMES:
        fields = {"all": True} if name == "forget" else {}
        assert decided(message(name, **fields), fleet=FleetSettings()) == (Action.REFUSE, Code.NOT_ALLOWED)
    failure = decide(message("bench"), Memory(), (), OPEN, Now(NOW, True)).failure
    assert failure is not None
    assert "logs, doctor, restart, forget" in failure.reason
    assert "fleet.commands" in failure.hint


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        ("logs", b"\xff", "UTF-8"),
        ("logs", b"{", "not JSON"),
        ("logs", b"[]", "JSON object"),
        ("logs", b'{"status": "init", "status": "init"}', "twice"),
        ("logs", b"[" * 4000, "nested too deeply"),
        ("logs", b" " * 4097, "up to 4096"),
        ("logs", {"expires": None}, "expires must be an RFC 3339 time"),
        ("logs", {"expires": "tomorrow"}, "expires must be an RFC 3339 time"),
        ("logs", {"status": "start"}, 'status must be "init"'),
        ("logs", {"lines": 0}, "lines must be a whole number from 1 to 1000"),
        ("logs", {"lines": True}, "lines must be"),
        ("logs", {"level": "all"}, 'level must be "debug"'),
        ("logs", {"line": 5}, "unknown field 'line': logs takes level and lines"),
        ("doctor", {"lines": 5}, "lines: no field of doctor; it takes none of its own"),
        ("forget", {}, 'forget takes either "job" or "all"'),
        ("forget", {"job": "a", "all": True}, 'forget takes either "job" or "all"'),
        ("forget", {"job": "a b"}, "job must be 1 to 64 characters"),
        ("forget", {"job": "\ud800"}, "job must be"),
        ("logs", {"signature": "x"}, "signature must be an Ed25519 signature"),
        ("logs", {"expires": format_time(NOW + 8 * 86400)}, "within 7 days"),
    ],
)
def test_a_document_that_is_wrong_is_answered_with_what_would_be_right(
    name: str, payload: bytes | dict[str, Any], words: str
) -> None:
    raw = payload if isinstance(payload, bytes) else json.dumps(document(**payload)).encode()
    decision = decide(message(name, payload=raw), Memory(), (), OPEN, Now(NOW, True))
    assert decision.action is Action.ANSWER
    assert decision.failure is not None
    assert decision.failure.code is Code.INVALID
    assert words in decision.failure.reason


def test_a_document_without_expires_says_that_it_is_missing() -> None:
    with pytest.raises(RefusedError, match="expires is missing: it must be an RFC 3339 time"):
        read_command("logs", "c1", b'{"status": "init"}')


def test_an_unknown_command_is_answered_with_those_that_exist() -> None:
    failure = decide(message("reboot"), Memory(), (), OPEN, Now(NOW, True)).failure
    assert failure is not None
    assert (failure.code, failure.hint) == (Code.UNKNOWN, f"commands are {', '.join(NAMES)}")


# Who may ask


def keyed(*keys: Ed25519PrivateKey) -> FleetSettings:
    der = [key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    return FleetSettings(commands=["logs"], trusted_keys=[base64.b64encode(one).decode() for one in der])


def signed(key: Ed25519PrivateKey, sent: Message, **changed: Any) -> Message:
    plain = json.loads(sent.payload)
    signature = sign(check_command("logs", sent.id, plain), sent.topic, key)
    return replace(sent, payload=json.dumps({**plain, "signature": signature, **changed}).encode())


def test_with_keys_only_a_signed_document_runs_and_only_on_its_topic() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    fleet, sent = keyed(other, key), message()
    good = signed(key, sent)
    assert decided(good, fleet=fleet) == (Action.RUN, None)
    assert decided(sent, fleet=fleet) == (Action.ANSWER, Code.UNSIGNED)
    assert decided(good, fleet=keyed(other)) == (Action.ANSWER, Code.SIGNATURE_WRONG)
    for moved in (message(id="c2"), message(own=False)):
        assert decided(replace(moved, payload=good.payload), fleet=fleet) == (Action.ANSWER, Code.SIGNATURE_WRONG)
    assert decided(signed(key, sent, lines=999), fleet=fleet) == (Action.ANSWER, Code.SIGNATURE_WRONG)


def test_with_keys_an_unsynchronised_clock_runs_nothing() -> None:
    key = Ed25519PrivateKey.generate()
    sent = signed(key, message())
    assert decided(sent, fleet=keyed(key), synchronised=False) == (Action.REFUSE, Code.NO_CLOCK)
    assert decided(message(), synchronised=False) == (Action.RUN, None)  # without keys, time is not judged


def test_an_expired_document_runs_nowhere() -> None:
    assert decided(message(), at=NOW + 600) == (Action.ANSWER, Code.EXPIRED)
    assert decided(message(), at=NOW + 600, synchronised=False) == (Action.RUN, None)
    assert decided(message(), Memory(floor=NOW + 600), synchronised=False, at=0.0) == (Action.ANSWER, Code.EXPIRED)


# What is remembered


def entry(id: str = "c1", name: str = "logs", expires: float = NOW + 600, **fields: Any) -> Entry:
    return Entry(name, id, expires, **{"status": Status.EXECUTING, **fields})


def test_a_known_id_never_runs_again_and_is_answered_on_its_own_topic() -> None:
    done = Memory().put(entry().succeed({"lines": []}))
    assert decided(message(), done) == (Action.REPEAT, None)
    assert decided(message(own=False), done) == (Action.NOTHING, None)  # the answer is there already
    assert decided(message(lines=3), done) == (Action.REPEAT, None)
    assert decided(message(id="c2"), done) == (Action.RUN, None)
    assert decided(message("doctor"), done) == (Action.RUN, None)


def test_a_waiting_command_is_not_taken_twice() -> None:
    assert decide(message(), Memory(), ("logs/c1",), OPEN, Now(NOW, True)).action is Action.NOTHING


def test_the_devices_own_answers_come_back_and_change_nothing() -> None:
    memory = Memory().put(entry())
    for told in (entry(), entry().succeed({"x": 1}), entry().fail(Failure(Code.FAILED, "why"))):
        payload = json.dumps(answer(told, "pi")).encode()
        assert decided(message(payload=payload), memory) == (Action.NOTHING, None)
    large = json.dumps({"status": "successful", "result": "x" * 40_000}).encode()
    assert decided(message(payload=large)) == (Action.NOTHING, None)


def test_a_document_that_says_executing_and_is_not_remembered_is_ended() -> None:
    assert decided(message(payload=b'{"status": "executing"}')) == (Action.ANSWER, Code.INTERRUPTED)
    assert decided(message(own=False, payload=b'{"status": "executing"}'))[1] is Code.INVALID


def test_an_emptied_topic_clears_and_that_of_a_group_changes_nothing() -> None:
    assert decided(message(payload=b"")) == (Action.CLEAR, None)
    assert decided(message(own=False, payload=b"")) == (Action.NOTHING, None)


def test_a_command_walks_to_one_end_only() -> None:
    for done in (entry().succeed({}), entry().fail(Failure(Code.FAILED, "why"))):
        for again in (lambda one: one.succeed({}), lambda one: one.fail(Failure(Code.FAILED, "why"))):
            with pytest.raises(TransitionError):
                again(done)


def test_a_restart_has_succeeded_when_the_next_process_begins_and_anything_else_was_interrupted() -> None:
    memory = Memory()
    for name in NAMES:
        memory = memory.put(entry(name=name))
    after = memory.put(entry("old").succeed({"kept": 1})).begun_anew()
    told = {key: one.status for key, one in after.entries.items()}
    assert {key for key, status in told.items() if status is Status.SUCCESSFUL} == {
        "restart/c1",
        "reload/c1",
        "logs/old",
    }
    failure = after.entries["bench/c1"].failure
    assert failure is not None
    assert failure.code is Code.INTERRUPTED
    assert after.entries["logs/old"].result == {"kept": 1}


def test_the_answer_has_the_result_until_it_is_told_and_the_status_after_that() -> None:
    done = entry().succeed({"lines": ["a"]})
    assert answer(done, "pi") == {"status": "successful", "device": "pi", "result": {"lines": ["a"]}}
    assert answer(done.as_told(), "pi") == {"status": "successful", "device": "pi"}
    assert answer(entry().fail(Failure(Code.TIMED_OUT, "why", "what to do")), "pi") == {
        "status": "failed",
        "device": "pi",
        "code": "timed_out",
        "reason": "why",
        "hint": "what to do",
    }


def test_the_memory_is_read_as_it_was_written_and_damage_is_told(tmp_path: Path) -> None:
    file = tmp_path / "commands.json"
    assert read_memory(file) == Memory()
    memory = Memory(floor=5.0).put(entry().succeed({"lines": ["ü"]}))
    memory = memory.put(entry("c2").fail(Failure(Code.FAILED, "why", "hint"))).put(entry("c3"))
    write_memory(file, memory)
    assert read_memory(file) == memory
    whole = file.read_bytes()
    for damaged in (whole[:-5], whole.replace(b"c2", b"c9"), b"[]", b'{"crc32": 1}', b""):
        file.write_bytes(damaged)
        with pytest.raises(DamagedError):
            read_memory(file)


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 5), st.integers(1, 20), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("restart")),
        st.tuples(st.just("time"), st.integers(-10, 10), st.booleans()),
    ),
    max_size=40,
)


@given(_STEPS)
def test_no_id_ever_runs_twice_whatever_clocks_and_restarts_do(steps: list[Any]) -> None:
    """Asked again and again, with any clock, over ends and restarts: each id runs once at most."""
    memory, now, ran = Memory(), Now(NOW, True), list[str]()
    expires = {number: NOW + 3 * number for number in range(6)}  # a document is published with one time
    for kind, *values in steps:
        if kind == "ask":
            sent = message("logs", f"c{values[0]}", values[2], expires=format_time(expires[values[0]]))
            decision = decide(sent, memory, (), OPEN, now)
            if decision.action is Action.RUN:
                assert decision.command is not None
                ran.append(sent.id)
                memory = memory.put(taken(decision.command))
        elif kind == "end":
            known = memory.entries.get(f"logs/c{values[0]}")
            if known is not None and not known.ended:
                failed = known.fail(Failure(Code.FAILED, "why"))
                memory = memory.put((known.succeed({}) if values[1] else failed).as_told())
        elif kind == "restart":
            memory = memory.begun_anew()
        else:
            now = Now(NOW + values[0], values[1])
        if now.synchronised:
            memory = memory.past(now.wall)
    assert len(ran) == len(set(ran))


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans(), st.booleans()), max_size=30), st.integers(0, 100))
def test_what_has_expired_and_was_answered_is_forgotten_and_nothing_else(
    made: list[tuple[int, bool, bool]], now: int
) -> None:
    memory = Memory()
    for number, (expires, ended, told) in enumerate(made):
        one = entry(str(number), expires=float(expires))
        one = one.succeed({}) if ended else one
        memory = memory.put(one.as_told() if told else one)
    kept = memory.past(float(now)).entries
    for key, one in memory.entries.items():
        assert (key in kept) == (one.expires > now or not one.ended or not one.told)


def test_a_removed_document_is_not_published_again_until_somebody_asks_again() -> None:
    cleared = entry().clear()
    assert cleared.told
    assert cleared.succeed({"x": 1}).told
    assert entry().succeed({"x": 1}).clear().result is None
    assert not cleared.asked_again().succeed({"x": 1}).told


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.booleans(), st.sampled_from([*NAMES, "x"]))
def test_any_payload_is_decided_and_none_but_a_document_runs(payload: bytes, own: bool, name: str) -> None:
    decision = decide(message(name, own=own, payload=payload), Memory(), (), OPEN, Now(NOW, True))
    assert decision.action in (Action.ANSWER, Action.NOTHING, Action.CLEAR)
    assert decision.action is not Action.CLEAR or (own and not payload)


def test_a_refused_command_is_remembered_as_failed() -> None:
    command = check_command("bench", "c1", document())
    one = refused(command, Failure(Code.NOT_ALLOWED, "why"))
    assert (one.ended, one.status, one.key) == (True, Status.FAILED, "bench/c1")
    assert decided(message("bench"), Memory().put(one), FleetSettings(commands=["bench"])) == (Action.REPEAT, None)
