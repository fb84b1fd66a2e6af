"""Whatever stands in a document, only what its reader promises comes out. Jobs have a module of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_manager import World

from edged.jobs.document import Code, State, result_document
from edged.jobs.reading import read_submission
from edged.mqtt.identity import InstanceStatus, read_status
from edged.mqtt.topics import is_id
from edged.settings import SettingsError, load
from edged.settings.keys import KEYS

SECRET = "s3cr3t-w0rd"
ODD_TEXTS = st.sampled_from(["", "auto", "[", "[1", '["a","a"]', "true", "1e999", "NaN", "\0", "a\nb", "\ud800", "-1"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | ODD_TEXTS
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
objects = st.dictionaries(st.text(), values, max_size=4)
payloads = st.binary(max_size=80) | values.map(lambda value: json.dumps(value).encode())


def told(config: Path | None = None, flags: dict[str, Any] | None = None) -> str:
    """Why these settings do not do; empty where they do."""
    try:
        load(config, flags)
    except SettingsError as error:
        message = str(error)
        assert message == " ".join(message.splitlines()), message
        assert 0 < len(message) < 2000
        return message
    return ""


@given(key=st.sampled_from(sorted(KEYS)), value=values)
def test_any_value_of_any_setting_is_taken_or_named_on_one_line(key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    message = told(flags={section: {name: value}} if section else {name: value})
    assert not message or key.partition(".")[0] in message


@given(name=st.sampled_from([key.variable for key in KEYS.values()]), value=st.text(max_size=30) | ODD_TEXTS)
def test_any_environment_is_taken_or_named_on_one_line(name: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(name, value)
        except (ValueError, UnicodeEncodeError):  # what no environment can hold
            return
        told()


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_taken_or_named_on_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edged.toml"
    path.write_bytes(content)
    told(path)


@given(value=values, wrong=st.sampled_from(["mqtt.password", "mqtt.username", "mqtt.port", "log.level"]))
def test_no_message_shows_a_password(value: Any, wrong: str) -> None:
    mqtt = {"password": [SECRET] if wrong == "mqtt.password" else SECRET}
    section, _, name = wrong.partition(".")
    flags: dict[str, Any] = {"mqtt": mqtt}
    if wrong != "mqtt.password":
        flags.setdefault(section, {})[name] = value
    assert SECRET not in told(flags=flags)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("jobs"))


@given(payload=payloads | objects.map(lambda value: json.dumps(value).encode()))
def test_any_cancel_is_one_refusal_or_a_remembered_id(world: World, payload: bytes) -> None:
    world.said.clear()
    world.cancel_message(payload, mid=1)
    world.jobs.flush()
    refusals = [said for said in world.said if said[0] == "result"]
    assert ("puback", 1) in world.said
    try:
        document = json.loads(payload)
    except ValueError:
        document = None
    right = isinstance(document, dict) and set(document) == {"id"}
    right = right and isinstance(document["id"], str) and is_id(document["id"])
    assert len(refusals) == (0 if right else 1)
    for _, id, refusal in refusals:
        assert id.startswith("invalid-")
        assert refusal["error"]["code"] == Code.INVALID_JOB.value


@given(payload=payloads, instance=values, state=values)
def test_any_status_is_one_or_none(payload: bytes, instance: Any, state: Any) -> None:
    read_status(payload)
    read = read_status(json.dumps({"instance": instance, "state": state}).encode())
    both = isinstance(instance, str) and isinstance(state, str)
    assert read == (InstanceStatus(instance, state) if both else None)


def plain(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


@given(
    metadata=objects.filter(plain), text=st.text(), tokens=st.lists(st.integers(0, 2**31)), state=st.sampled_from(State)
)
def test_a_result_says_on_the_wire_what_was_put_in(
    metadata: dict[str, Any], text: str, tokens: list[int], state: State
) -> None:
    job = json.dumps({"id": "a", "prompt": "x", "metadata": metadata}).encode()
    taken = read_submission(job, 1 << 20).job.metadata
    written = result_document("a", "d", state, metadata=taken, text=text, token_ids=tokens)
    assert json.loads(written) == {
        "id": "a", "device": "d", "state": state.value, "text": text, "token_ids": tokens, "metadata": metadata,
    }  # fmt: skip
