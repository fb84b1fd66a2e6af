"""Who may tell a device what to serve: signatures of desired documents, and the command that makes them."""

from __future__ import annotations

import base64
import json
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rollout_rig import document, received

from edged.cli import main
from edged.rollout.desired import RefusedError, read_desired
from edged.rollout.signing import check_allowed
from edged.rollout.signing import sign as signature
from edged.settings import SettingsError, load
from edged.settings.fleet import FleetSettings

TOPIC = "edged/v1/group/hall/desired"
EXPIRES = "2037-01-01T00:00:00Z"


class Signer:
    """A key in a PEM file, as openssl makes it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.private = Ed25519PrivateKey.generate()
        self.file = folder / f"{name}.pem"
        kinds = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        self.file.write_bytes(self.private.private_bytes(serialization.Encoding.PEM, *kinds))
        public = self.private.public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = base64.b64encode(public.public_bytes(serialization.Encoding.DER, form)).decode()


@pytest.fixture
def fleet_key(tmp_path: Path) -> Signer:
    return Signer(tmp_path, "fleet")


@pytest.fixture
def conductor(tmp_path: Path) -> Signer:
    return Signer(tmp_path, "conductor")


def run(*arguments: str | Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edged", "fleet", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


@pytest.fixture
def sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`edged fleet sign`: the document that it prints."""

    def command(fields: dict[str, Any], key: Signer, *options: str, topic: str = TOPIC) -> dict[str, Any]:
        file = tmp_path / "desired.json"
        file.write_text(json.dumps(fields))
        assert run("sign", file, "--key", key.file, "--topic", topic, *options) == 0
        return dict(json.loads(capsys.readouterr().out))

    return command


def code(fields: dict[str, Any], fleet: FleetSettings, topic: str = TOPIC) -> str | None:
    """Why a document is not followed; None where it is."""
    try:
        check_allowed(read_desired(json.dumps(fields).encode(), "group/hall"), topic, fleet)
    except RefusedError as error:
        return error.fault.code
    return None


def test_without_keys_nothing_is_followed_unless_the_operator_says_so() -> None:
    assert code(document(), FleetSettings()) == "desired_unsigned"
    assert code(document(), FleetSettings(unsigned=True)) is None


def test_a_signed_document_is_followed_and_an_unsigned_one_is_not(sign: Any, fleet_key: Signer) -> None:
    fleet = FleetSettings(trusted_keys=[fleet_key.public])
    signed = sign(document(expires=EXPIRES), fleet_key)
    assert code(signed, fleet) is None
    assert code(document(expires=EXPIRES), fleet) == "desired_unsigned"
    assert code({**signed, "wave_signature": None}, fleet) == "desired_unsigned"
    endless = received(target="group/hall")
    signatures = {
        "signature": signature(endless, TOPIC, "release", fleet_key.private),
        "wave_signature": signature(endless, TOPIC, "wave", fleet_key.private),
    }
    assert code({**document(), **signatures}, fleet) == "desired_invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 2},
        {"rollout": "r2"},
        {"model": {"source": "/media/stick/phi3", "digest": "cd" * 32}},
        {"expires": "2038-01-01T00:00:00Z"},
        {"timeout": 60},
        {"percent": 50},
        {"abort": True},
    ],
)
def test_no_field_can_be_changed_after_it_was_signed(sign: Any, fleet_key: Signer, change: dict[str, Any]) -> None:
    fleet = FleetSettings(trusted_keys=[fleet_key.public])
    signed = sign(document(expires=EXPIRES, percent=5), fleet_key)
    assert code({**signed, **change}, fleet) == "desired_signature_wrong"


def test_a_signature_is_worth_nothing_on_another_topic_or_with_another_key(
    sign: Any, fleet_key: Signer, conductor: Signer
) -> None:
    fleet = FleetSettings(trusted_keys=[fleet_key.public])
    signed = sign(document(expires=EXPIRES), fleet_key)
    assert code(signed, fleet, topic="edged/v1/group/all/desired") == "desired_signature_wrong"
    assert code(sign(document(expires=EXPIRES), conductor), fleet) == "desired_signature_wrong"


def test_a_conductors_key_signs_the_wave_and_no_release(sign: Any, fleet_key: Signer, conductor: Signer) -> None:
    fleet = FleetSettings(trusted_keys=[fleet_key.public], conductor_keys=[conductor.public])
    signed = sign(document(expires=EXPIRES, percent=5), fleet_key)
    further = sign({**signed, "percent": 25}, conductor, "--wave")
    assert further["signature"] == signed["signature"]
    assert code(further, fleet) is None
    assert code(sign({**signed, "sequence": 2}, conductor, "--wave"), fleet) == "desired_signature_wrong"
    assert code(sign({**signed, "sequence": 2}, conductor), fleet) == "desired_signature_wrong"


def test_what_cannot_be_signed_is_said(tmp_path: Path, fleet_key: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, other = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "other.pem"
    endless = tmp_path / "endless.json"
    endless.write_text(json.dumps(document()))
    good.write_text(json.dumps(document(expires=EXPIRES)))
    bad.write_text(json.dumps(document(sequnce=1)))
    kinds = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    other.write_bytes(generate_private_key(SECP256R1()).private_bytes(serialization.Encoding.PEM, *kinds))
    for file, key, topic, told in (
        (good, fleet_key.file, "edged/v1/group/hall/job", "--topic edged/v1/group/hall/job: it must be"),
        (bad, fleet_key.file, TOPIC, "did you mean 'sequence'?"),
        (endless, fleet_key.file, TOPIC, "expires must be there"),
        (tmp_path / "none.json", fleet_key.file, TOPIC, "no such file"),
        (good, other, TOPIC, "it must be an Ed25519 key"),
        (good, good, TOPIC, "it must be an Ed25519 key"),
    ):
        assert run("sign", file, "--key", key, "--topic", topic) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fleet", "told"),
    [
        ({"trusted_keys": ["abc"]}, "fleet.trusted_keys = "),
        ({"unsigned": True, "trusted_keys": ["KEY"]}, "fleet.unsigned = true"),
        ({"conductor_keys": ["KEY"]}, "fleet.trusted_keys = .*: must be set where fleet.conductor_keys is"),
    ],
)
def test_settings_that_do_not_go_together_are_named(fleet: dict[str, Any], told: str, fleet_key: Signer) -> None:
    values = {name: [fleet_key.public] if value == ["KEY"] else value for name, value in fleet.items()}
    with pytest.raises(SettingsError, match=told):
        load(flags={"fleet": values})


def test_keys_without_the_library_are_a_fault_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, fleet_key: Signer
) -> None:
    find = util.find_spec
    monkeypatch.setattr("edged.settings.fleet.find_spec", lambda name: None if name == "cryptography" else find(name))
    with pytest.raises(SettingsError, match=r"pip install 'edged\[fleet\]'"):
        load(flags={"fleet": {"trusted_keys": [fleet_key.public]}})
    assert load(flags={"fleet": {"unsigned": True}}).settings.fleet.unsigned


def test_canonical_json_does_not_depend_on_the_order_of_fields(sign: Any, fleet_key: Signer) -> None:
    signed = sign(document(expires=EXPIRES), fleet_key)
    turned = dict(reversed(signed.items()))
    assert code(turned, FleetSettings(trusted_keys=[fleet_key.public])) is None
    assert received().release == read_desired(json.dumps(dict(reversed(document().items()))).encode(), "device").release
