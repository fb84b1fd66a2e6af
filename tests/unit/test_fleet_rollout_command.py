"""`edged fleet rollout` before it reaches a broker: what is called wrongly is said in one line, and what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pull_rig import publish
from rollout_rig import DIGEST, received

from edged.cli import main
from edged.cli.fleet_rollout_table import as_json, faults, line, rows
from edged.models.sources import open_source
from edged.rollout.conductor import Decision, Verdict, Wave
from edged.rollout.conductor_member import Member
from edged.rollout.conductor_run import Picture
from edged.rollout.execution import State

GROUP = ("--group", "hall")
MODEL = (*GROUP, "--model", "/media/stick/phi3", "--digest", DIGEST)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*MODEL, "--waves", "25,5"), "--waves 25,5: it must be"),
        ((*MODEL, "--waves", "5,5"), "--waves 5,5"),
        ((*MODEL, "--waves", "0,5"), "--waves 0,5"),
        ((*MODEL, "--waves", "5,nan"), "--waves 5,nan"),
        ((*MODEL, "--waves", ""), "--waves"),
        (("--group", "a/b"), "--group 'a/b' must be 1 to 64"),
        ((*GROUP, "--digest", DIGEST), "--digest goes with --model only"),
        ((*GROUP, "--expires", "2090-01-01T00:00:00Z"), "--expires goes with --model or --set only"),
        ((*MODEL, "--document", "bad.json"), "not both"),
        ((*GROUP, "--set", "model.rows=2", "--document", "bad.json"), "not both"),
        ((*GROUP, "--set", "model.rows"), "--set model.rows: it must be NAME=VALUE"),
        ((*GROUP, "--set", "model.rows=0"), "settings: model.rows = 0: must be a whole number from 1 to 64"),
        ((*GROUP, "--set", "log.level=loud"), "settings: log.level = loud: must be"),
        ((*GROUP, "--set", 'device.groups=["b"]'), "device.groups goes in the document of one device only"),
        ((*MODEL, "--set", "mqtt.password=x"), "settings: mqtt.password cannot be set from afar, only device.groups"),
        ((*GROUP, "--document", "bad.json"), "rollout is missing"),
        ((*GROUP, "--document", "none"), "no such file"),
        ((*GROUP, "--model", "."), "or give its --digest"),
        ((*GROUP, "--model", "hf:a/b/c", "--digest", "xy"), "model.digest must be 64 hex digits"),
        ((*MODEL, "--expires", "tomorrow"), "expires must be an RFC 3339 time"),
        ((*GROUP, "--key", "bad.json"), "it must be an Ed25519 key"),
        ((*GROUP, "--key", "none"), "no such file"),
    ],
)
def test_what_is_called_wrongly_is_said_in_one_line(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.json").write_text(json.dumps({"sequence": 1, "model": {"source": "/a", "digest": DIGEST}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edged", "fleet", "rollout", *arguments])
    monkeypatch.setattr("edged.logs.configure", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    out, errors = capsys.readouterr()
    assert (ended.value.code, out, errors.count("\n")) == (2, "", 1)
    assert told in errors


def test_the_digest_of_a_source_with_all_sums_is_that_of_its_manifest(tmp_path: Path) -> None:
    package = publish(tmp_path)
    identity = open_source(str(package)).identity
    assert identity is not None
    assert len(identity) == 64
    (package / "SHA256SUMS").unlink()
    assert open_source(str(package)).identity is None


def picture(*members: Member) -> Picture:
    return Picture(received("group/hall"), Decision(Verdict.IN_PROGRESS, Wave(20.0), "wave", 25.0), members)


def test_what_people_and_scripts_are_told_of_devices() -> None:
    fault = {"code": "rollout_package_failed", "message": "wrong answers", "hint": "mend it"}
    shown = picture(
        Member("a", 0, here=True, state=State.SUCCEEDED),
        Member("b", 1, here=True, state=State.FAILED, failures=1, fault=fault),
        Member("c", 2, here=False),
        Member("d", 3, here=True, state=State.IN_PROGRESS, step="downloading", progress=0.25),
        Member("e", 1 << 47, here=True, state=State.QUEUED, waiting_for="percent"),
        Member("f", 4, here=True, state=State.QUEUED, waiting_for="clock"),
        Member("g", 5, here=True, state=State.QUEUED, waiting_for="percent"),
        Member("h", 6, here=True, state=State.IN_PROGRESS, step="downloading", fault={"code": "x", "message": "y"}),
    )
    assert line(shown) == (
        "IN_PROGRESS at 20 %: 1 FAILED, 2 IN_PROGRESS, 1 LATER, 1 QUEUED, 1 QUEUED (waits for clock), 1 SUCCEEDED, "
        "1 WAITING; waits for the devices of this wave"
    )
    assert faults(shown.members) == ["b FAILED: rollout_package_failed: wrong answers; mend it", "h IN_PROGRESS: x: y"]
    assert [row.split() for row in rows(shown)[1:]] == [
        ["a", "SUCCEEDED"],
        ["c", "WAITING", "away"],
        ["d", "IN_PROGRESS", "downloading", "·", "25%"],
        ["f", "QUEUED", "waits", "for", "clock"],
        ["g", "QUEUED", "waits", "for", "percent"],
        ["h", "IN_PROGRESS", "downloading", "·", "x:", "y"],
        ["e", "LATER", "waits", "for", "percent"],
    ]
    told = json.loads(json.dumps(as_json(shown)))
    assert told["counts"] == {"SUCCEEDED": 1, "FAILED": 1, "WAITING": 1, "IN_PROGRESS": 2, "LATER": 1, "QUEUED": 2}
    assert [device["included"] for device in told["devices"]] == [True, True, True, True, False, True, True, True]
    assert told["devices"][1]["fault"] == fault
