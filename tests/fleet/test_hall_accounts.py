"""A board's keys, a sender's and a conductor's in wrong hands: none of them changes the model of another device."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fleet_fixtures import Guest
from hall import GROUP, ROOT, Hall
from pull_rig import publish
from rollout_client import desired, digest_of

TOPIC = f"{ROOT}/group/{GROUP}/desired"


@pytest.fixture
def thief(hall: Hall) -> Callable[[str, str], Guest]:
    """Connects with stolen keys."""
    return lambda kind, name: Guest(hall.broker.port, hall.broker.files(kind, name))


def test_a_stolen_boards_and_a_stolen_senders_account_cannot_roll_out(
    hall: Hall, thief: Callable[[str, str], Guest]
) -> None:
    stolen, other = hall.names[-1], hall.names[0]
    document = json.dumps(json.loads(hall.signed(publish(hall.folder / "stolen"), "stolen").read_text()))
    since = len(hall.watch.heard)
    for kind, name in (("device", stolen), ("sender", "gateway")):
        guest = thief(kind, name)
        topics = [TOPIC, *(f"{ROOT}/device/{one}/{what}" for one in (stolen, other) for what in ("desired", "cmd/x/1"))]
        topics += [f"{ROOT}/device/{other}/{what}" for what in ("reported", "status", "info")]
        if kind == "device":
            topics.remove(f"{ROOT}/device/{stolen}/cmd/x/1")  # where it answers commands
        assert [topic for topic in topics if guest.publish(topic, document, retain=True)] == []
        guest.close()
    after = [topic for _, topic, _ in hall.watch.heard[since:]]
    assert [topic for topic in after if topic.endswith(("/desired", "/reported"))] == []


def test_a_stolen_conductors_account_cannot_roll_out_without_the_fleets_key(
    hall: Hall, thief: Callable[[str, str], Guest]
) -> None:
    package = publish(hall.folder / "forged", pad=7)
    guest, since = thief("conductor", "rollouts"), len(hall.watch.heard)
    wrong = {**json.loads(hall.signed(package, "forged").read_text()), "percent": 100.0}
    for forged in (desired(package, rollout="forged", sequence=hall.sequence, percent=100.0), wrong):
        assert guest.publish(TOPIC, json.dumps(forged), retain=True)
        code = "desired_unsigned" if "signature" not in forged else "desired_signature_wrong"

        def silent(code: str = code) -> list[str]:
            last = {name: hall.watch.last(name, "reported").get("refused", []) for name in hall.names}
            return [name for name, refused in last.items() if code not in [one["fault"]["code"] for one in refused]]

        hall.watch.wait_until(lambda: not silent(), lambda: f"{code}, silent: {silent()}")  # noqa: B023
    told = hall.watch.all("/reported", since)
    assert [one for one in told if one["rollout"] == "forged"] == []
    assert digest_of(package) not in {(one["model"] or {}).get("digest") for one in told}
    assert guest.publish(TOPIC, "", retain=True)
    guest.close()
