"""Who may do what at a broker locked down as deploy/mosquitto says; the real plugin, the script's keys and rights."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from broker_rig import Device
from fleet_fixtures import PASSWORD, Fleet, Guest
from patience import PATIENCE, eventually

from edged.mqtt.events import (
    CancelReceived,
    GroupPing,
    GroupPong,
    JobReceived,
    LinkUp,
    Published,
    PublishRefused,
    ShareReceived,
)
from edged.mqtt.groups import Membership
from edged.mqtt.topics import Topics

pytest_plugins = ["fleet_fixtures"]
Make = Callable[..., Any]
Connect = Callable[..., Guest]


def link(make_device: Make, fleet: Fleet, name: str, group: str = "fleet", **options: Any) -> Device:
    device: Device = make_device(fleet.port, name, [group], tls=True, **fleet.files("device", name), **options)
    return device


def group_jobs(sender: Guest, group: str) -> list[bytes]:
    """Sends ten jobs to a group; their payloads."""
    for number in range(10):
        assert sender.publish(f"edged/v1/group/{group}/job", str(number))
    return [b"%d" % number for number in range(10)]


# What the script makes


@pytest.mark.slow
def test_every_file_is_for_its_owner_alone_and_is_kept_by_a_second_run(fleet: Fleet) -> None:
    before = {path: path.read_bytes() for path in fleet.keys.rglob("*") if path.is_file()}
    assert {path.stat().st_mode & 0o777 for path in before} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in fleet.keys.rglob("*") if path.is_dir()} == {0o700}
    text = fleet.must("init", "--host", "127.0.0.1") + fleet.must("device", "a", "--groups", "fleet")
    assert {path: path.read_bytes() for path in fleet.keys.rglob("*") if path.is_file()} == before
    for name in ("ca.pem", "admin.pem", "broker/server.pem", "device/a/device.pem"):
        end = subprocess.run(
            ["openssl", "x509", "-in", fleet.keys / name, "-noout", "-enddate"], capture_output=True, text=True
        )
        assert f"until {end.stdout.strip().removeprefix('notAfter=')}" in text
    assert f"in a copy of {fleet.keys}/device/a/:" in text
    assert "install -m 0600 device.key /etc/edged-secrets/" in text


def test_a_certificate_is_renewed_by_deleting_it_and_its_key_stays(fleet: Fleet, make_device: Make) -> None:
    files = fleet.files("device", "a")
    key, certificate = files["key_file"].read_bytes(), files["cert_file"].read_bytes()
    files["cert_file"].unlink()
    fleet.must("device", "a", "--groups", "fleet", "--days", "3")
    assert (files["key_file"].read_bytes(), files["cert_file"].read_bytes() != certificate) == (key, True)
    link(make_device, fleet, "a").up()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("init", "--host", "elsewhere"), "is for the broker 127.0.0.1"),
        (("sender", "a"), "a is the name of a device already"),
        (("device", "admin"), "admin is the name of the administrator already"),
        (("device", "no/slash"), "'no/slash' must be 1 to 64 characters"),
        (("device", "short", "--password"), "at least 12 characters"),
        (("revoke", "nobody"), "the broker knew no nobody"),
        (("revoke", "admin"), "cannot be revoked"),
        (("--broker", "127.0.0.1:1", "device", "c"), "127.0.0.1:1 does not answer: Error: Connection refused"),
    ],
)
def test_what_it_will_not_do_is_said_in_one_line(fleet: Fleet, arguments: tuple[str, ...], says: str) -> None:
    done = fleet.provision(*arguments, text="short\n")
    assert done.returncode in (1, 2)
    assert says in done.stderr.splitlines()[-1]


def test_no_password_is_kept_in_the_folder_nor_in_the_clear_at_the_broker(fleet: Fleet) -> None:
    for place in (fleet.keys, fleet.folder / "broker"):
        assert all(PASSWORD.encode() not in path.read_bytes() for path in place.rglob("*") if path.is_file())


# The fleet at work


def test_devices_with_certificates_and_passwords_do_all_that_the_contract_says(
    fleet: Fleet, make_device: Make, guest: Connect, protocol: str, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    group = f"work-{protocol}"
    ca = fleet.files("device", "a")["ca_file"]
    a = link(make_device, fleet, fleet.new_device(group), group, protocol=protocol).up()
    user = fleet.new_device(group, password=True)
    options = {"protocol": protocol, "tls": True, "ca_file": ca, "username": user, "password_file": secret}
    p: Device = make_device(fleet.password_port, user, [group], **options).up()
    assert [up.refused for device in (a, p) for up in device.seen if isinstance(up, LinkUp)] == [()] * 4
    hears = guest("sender", "gateway")
    assert hears.subscribe("edged/v1/reply/me")
    for channel in ("event/+", "result/+", "stream/+", "status", "info", "health", "bridge"):
        assert hears.subscribe(f"edged/v1/device/+/{channel}")
    for device in (a, p):
        topics = device.topics
        said = [
            topics.event("1"),
            topics.result("1"),
            topics.stream("1"),
            topics.info,
            topics.health,
            "edged/v1/reply/me",
        ]
        for topic in said:
            device.link.publish(topic, b"x", qos=1, token=topic)
            device.wait_for(Published, token=topic)
        device.say("online")
        device.wait_for(Published, token="online")
        heard = hears.until(topics.status, device.status("online").decode())
        assert {topic for topic, text in heard if text == "x"} == {*said}
        assert hears.publish(topics.job, "{}")
        device.wait_for(JobReceived, topic=topics.job)
        assert hears.publish(topics.cancel, "{}")
        device.wait_for(CancelReceived, topic=topics.cancel)
    jobs = group_jobs(hears, group)
    shares = [device.wait_for(JobReceived).message.payload for device in (a, p) for _ in range(5)]
    assert sorted(shares) == jobs
    assert hears.publish(f"edged/v1/group/{group}/cancel", "{}")
    for device in (a, p):
        device.wait_for(CancelReceived, topic=f"edged/v1/group/{group}/cancel")
    for device, model in ((a, "phi3"), (p, "other")):
        device.link.set_membership(Membership(frozenset(), model, asking=True, shares_load=True, listening=True))
        topic = f"edged/v1/group/{group}/model/{model}/job"
        eventually(lambda topic=topic: hears.matched(topic))
        device.wait_for(JobReceived, topic=topic)
    a.link.ping(group, "n")
    p.link.pong(group, p.wait_for(GroupPing).nonce)
    assert a.wait_for(GroupPong) == GroupPong(group, "n")
    for kind, topic in (
        ("offer", p.topics.group_offer),
        ("give", p.topics.group_give),
        ("given", p.topics.group_given),
    ):
        owner = p.topics.device if kind == "offer" else a.topics.device
        assert p.link.publish(topic(group, owner), b"{}", qos=1, token=kind)
        p.wait_for(Published, token=kind)
        assert a.wait_for(ShareReceived, topic=topic(group, owner)).member == owner
    assert [device.link.status().warnings for device in (a, p)] == [(), ()]


OLDER = ("/ping", "/pong", "/model/+/job")


@pytest.mark.slow
def test_roles_that_an_earlier_provision_made_are_warned_of_and_brought_up_to_date_by_a_run(
    fleet: Fleet, make_device: Make, guest: Connect, tmp_path: Path
) -> None:
    """As far as groups go; the sender's role is the same for all senders."""
    name = fleet.new_device("old")
    fleet.take_away(f"device-{name}", OLDER)
    fleet.take_away("sender", OLDER)
    device = link(make_device, fleet, name, "old").up()
    device.link.set_membership(Membership(model="phi3"))
    topics = device.topics
    refused = (topics.group_ping("old"), topics.group_model_job("old", "phi3"))
    eventually(lambda: len(device.link.status().warnings) == 2)
    messages = " ".join(warning.message for warning in device.link.status().warnings)
    assert all(topic in messages for topic in refused)
    assert device.link.status().connected
    # The job goes to the group's own topic, where the device hears it.
    own = fleet.keys / "sender/gateway"
    document = json.dumps({"id": "older", "prompt": "x", "model": "phi3"})
    line = [sys.executable, "-m", "edged", "submit", "--group", "old", "--job", "-", "--config", "edged.toml"]
    line += ["--mqtt-host", "127.0.0.1", "--mqtt-port", str(fleet.port), "--timeout", "60"]
    with subprocess.Popen(line, cwd=own, stdin=PIPE, stderr=PIPE, text=True) as submit:
        assert submit.stdin is not None
        submit.stdin.write(document)
        submit.stdin.close()
        assert json.loads(device.wait_for(JobReceived).message.payload)["id"] == "older"
        submit.kill()
        assert submit.stderr is not None
        assert "access control list does not let this device write there; trying again" in submit.stderr.read()
    fleet.must("device", name, "--groups", "old")
    fleet.must("sender", "gateway")
    device.down()
    device.until_up()
    assert device.link.status().warnings == ()
    assert guest("sender", "gateway").publish("edged/v1/group/old/model/phi3/job")


# Strangers


def test_a_stranger_is_refused_at_connect(fleet: Fleet, make_device: Make, tmp_path: Path) -> None:
    ca = fleet.files("device", "a")["ca_file"]
    nobody: Device = make_device(fleet.port, "a", tls=True, ca_file=ca).start()
    assert "certificate" in nobody.down().reason
    with_password = fleet.new_device("fleet", password=True)
    for user in (with_password, "a", "admin", "nobody"):
        guess: Device = make_device(
            fleet.password_port, "p", tls=True, ca_file=ca, username=user, password="guess"
        ).start()
        assert guess.down().reason == f"the broker refused user '{user}': bad user name or password"
    without: Device = make_device(fleet.password_port, "p", tls=True, ca_file=ca).start()
    assert "without user and password" in without.down().reason
    # A user name alone must not do either, where no password is set.
    alone: Device = make_device(fleet.password_port, "a", tls=True, ca_file=ca, username="a").start()
    assert "refused user 'a'" in alone.down().reason


def test_a_certificate_without_a_role_gets_no_subscription_and_no_job_is_lost(
    fleet: Fleet, make_device: Make, guest: Connect
) -> None:
    name, stays = fleet.new_device("hall"), fleet.new_device("hall")
    link(make_device, fleet, name, "hall").up().link.stop(PATIENCE)
    fleet.must("revoke", name)
    a = link(make_device, fleet, stays, "hall").up()
    gone = link(make_device, fleet, name, "hall").start()
    assert gone.wait_for(LinkUp, which="jobs").refused == (gone.topics.job, "$share/hall/edged/v1/group/hall/job")
    stranger = guest("device", name)
    for topic in ("$share/hall/edged/v1/group/hall/job", "edged/v1/group/hall/job", a.topics.job, "#"):
        assert not stranger.subscribe(topic), topic
    jobs = group_jobs(guest("sender", "gateway"), "hall")
    assert [a.wait_for(JobReceived).message.payload for _ in jobs] == jobs
    gone.none_of(JobReceived)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused(fleet: Fleet) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(fleet.keys / "ca.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", fleet.password_port), PATIENCE) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)alert.protocol.version"),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


# Each within its role

SUBSCRIBE = [
    ("device", "a", "edged/v1/device/b/job", False),
    ("device", "a", "edged/v1/device/+/job", False),
    ("device", "a", "edged/v1/device/b/result/+", False),
    ("device", "a", "$share/fleet/edged/v1/group/fleet/job", True),
    ("device", "a", "$share/fleet/edged/v1/group/fleet/model/phi3/job", True),
    ("device", "a", "$share/mine/edged/v1/group/fleet/model/phi3/job", False),
    ("device", "a", "edged/v1/group/fleet/model/phi3/job", False),
    ("device", "a", "edged/v1/group/fleet/ping", True),
    ("device", "a", "edged/v1/group/other/pong", False),
    ("device", "a", "$share/mine/edged/v1/group/fleet/job", False),
    ("device", "a", "edged/v1/group/fleet/job", False),
    ("device", "a", "$share/other/edged/v1/group/other/job", False),
    ("device", "a", "edged/v1/reply/#", False),
    ("device", "a", "$CONTROL/#", False),
    ("device", "a", "#", False),
    ("sender", "gateway", "edged/v1/device/a/result/+", True),
    ("sender", "gateway", "edged/v1/reply/#", True),
    ("sender", "gateway", "edged/v1/device/a/job", False),
    ("sender", "gateway", "$share/fleet/edged/v1/group/fleet/job", False),
    ("sender", "gateway", "edged/v1/#", False),
    ("home-assistant", "house", "homeassistant/+/+/config", True),
    ("home-assistant", "house", "edged/v1/device/a/status", True),
    ("home-assistant", "house", "edged/v1/device/a/job", False),
    ("home-assistant", "house", "$CONTROL/#", False),
    ("observer", "dashboard", "edged/v1/#", True),
    ("observer", "dashboard", "$share/fleet/edged/v1/group/fleet/job", False),
    ("observer", "dashboard", "$CONTROL/#", False),
    ("observer", "dashboard", "#", False),
    ("exporter", "prometheus", "edged/v1/device/+/health", True),
    ("exporter", "prometheus", "edged/v1/device/a/result/+", False),
    ("exporter", "prometheus", "edged/v1/device/+/job", False),
    ("exporter", "prometheus", "edged/v1/#", False),
    ("device", "a", "edged/v1/device/a/desired", True),
    ("device", "a", "edged/v1/group/fleet/desired", True),
    ("device", "a", "edged/v1/group/other/desired", False),
    ("device", "a", "edged/v1/device/b/desired", False),
    ("conductor", "rollouts", "edged/v1/device/+/reported", True),
    ("conductor", "rollouts", "edged/v1/group/+/desired", True),
    ("conductor", "rollouts", "edged/v1/device/+/result/+", False),
    ("conductor", "rollouts", "edged/v1/device/+/job", False),
    ("device", "a", "edged/v1/device/a/cmd/+/+", True),
    ("device", "a", "edged/v1/group/fleet/cmd/+/+", True),
    ("device", "a", "edged/v1/device/b/cmd/+/+", False),
    ("device", "a", "edged/v1/group/other/cmd/+/+", False),
    ("operator", "ops", "edged/v1/device/+/cmd/logs/1", True),
    ("exporter", "prometheus", "edged/v1/device/+/cmd/+/+", False),
]
PUBLISH = [
    ("device", "a", "edged/v1/device/a/result/1", True),
    ("device", "a", "edged/v1/reply/me", True),
    ("device", "a", "edged/v1/device/b/result/1", False),
    ("device", "a", "edged/v1/device/b/job", False),
    ("device", "a", "edged/v1/device/a/job", False),
    ("device", "a", "edged/v1/group/fleet/job", False),
    ("device", "a", "edged/v1/group/fleet/model/phi3/job", False),
    ("device", "a", "edged/v1/group/fleet/ping", True),
    ("device", "a", "edged/v1/group/other/pong", False),
    ("device", "a", "edged/v1/other/me", False),
    ("device", "a", Topics("edged/v1", "a").discovery("homeassistant"), False),
    ("device", "c.1", Topics("edged/v1", "c.1").discovery("homeassistant"), True),
    ("device", "c.1", Topics("edged/v1", "a").discovery("homeassistant"), False),
    ("device", "a", "elsewhere", False),
    ("device", "a", "$CONTROL/dynamic-security/v1", False),
    ("sender", "gateway", "edged/v1/device/a/job", True),
    ("sender", "gateway", "edged/v1/group/fleet/cancel", True),
    ("sender", "gateway", "edged/v1/group/fleet/model/phi3/job", True),
    ("sender", "gateway", "edged/v1/group/fleet/pong", False),
    ("sender", "gateway", "edged/v1/device/a/result/1", False),
    ("sender", "gateway", "edged/v1/device/a/status", False),
    ("sender", "gateway", "edged/v1/reply/me", False),
    ("sender", "gateway", "$CONTROL/dynamic-security/v1", False),
    ("home-assistant", "house", "homeassistant/status", True),
    ("home-assistant", "house", "edged/v1/group/fleet/job", True),
    ("home-assistant", "house", "edged/v1/device/a/status", False),
    ("home-assistant", "house", Topics("edged/v1", "c.1").discovery("homeassistant"), False),
    ("observer", "dashboard", "edged/v1/device/a/job", False),
    ("observer", "dashboard", "edged/v1/reply/me", False),
    ("observer", "dashboard", "$CONTROL/dynamic-security/v1", False),
    ("exporter", "prometheus", "edged/v1/device/a/status", False),
    ("exporter", "prometheus", "edged/v1/device/a/job", False),
    ("device", "a", "edged/v1/device/a/reported", True),
    ("device", "a", "edged/v1/device/a/desired", False),
    ("device", "a", "edged/v1/group/fleet/desired", False),
    ("device", "a", "edged/v1/device/b/reported", False),
    ("sender", "gateway", "edged/v1/device/a/desired", False),
    ("sender", "gateway", "edged/v1/group/fleet/desired", False),
    ("home-assistant", "house", "edged/v1/group/fleet/desired", False),
    ("conductor", "rollouts", "edged/v1/device/a/desired", True),
    ("conductor", "rollouts", "edged/v1/group/fleet/desired", True),
    ("conductor", "rollouts", "edged/v1/device/a/reported", False),
    ("conductor", "rollouts", "edged/v1/device/a/job", False),
    ("device", "a", "edged/v1/device/a/cmd/logs/1", True),  # where it answers
    ("device", "a", "edged/v1/device/b/cmd/logs/1", False),
    ("device", "a", "edged/v1/group/fleet/cmd/logs/1", False),
    ("sender", "gateway", "edged/v1/device/a/cmd/logs/1", False),
    ("sender", "gateway", "edged/v1/group/fleet/cmd/logs/1", False),
    ("home-assistant", "house", "edged/v1/device/a/cmd/logs/1", False),
    ("exporter", "prometheus", "edged/v1/device/a/cmd/logs/1", False),
    ("operator", "ops", "edged/v1/device/a/cmd/logs/1", True),
    ("operator", "ops", "edged/v1/group/fleet/cmd/logs/1", True),
    ("operator", "ops", "edged/v1/device/a/desired", False),
    ("conductor", "rollouts", "edged/v1/group/fleet/cmd/logs/1", True),
]


@pytest.mark.parametrize(("kind", "name", "topic", "granted"), SUBSCRIBE)
def test_who_may_subscribe(guest: Connect, kind: str, name: str, topic: str, granted: bool) -> None:
    assert guest(kind, name).subscribe(topic) is granted


@pytest.mark.parametrize(("kind", "name", "topic", "taken"), PUBLISH)
def test_who_may_publish(guest: Connect, kind: str, name: str, topic: str, taken: bool) -> None:
    assert guest(kind, name).publish(topic) is taken


def test_an_observer_hears_everything(guest: Connect) -> None:
    observer = guest("observer", "dashboard")
    assert observer.subscribe("edged/v1/#")
    sender, a = guest("sender", "gateway"), guest("device", "a")
    sender.publish("edged/v1/device/b/job", "job")
    observer.until("edged/v1/device/b/job", "job")
    a.publish("edged/v1/device/a/result/1", "answer")
    observer.until("edged/v1/device/a/result/1", "answer")


def test_a_reply_elsewhere_is_refused_and_the_device_goes_on(fleet: Fleet, make_device: Make) -> None:
    a = link(make_device, fleet, "a", protocol="5").up()
    a.link.publish("edged/v1/device/b/result/1", b"forged", qos=1, token="reply")
    assert (refused := a.wait_for(PublishRefused)).code == 0x87
    assert "access control list" in refused.reason


def test_a_will_for_another_device_is_not_published(guest: Connect) -> None:
    observer = guest("observer", "dashboard")
    assert observer.subscribe("edged/v1/device/+/status")
    guest("device", "a", will=("edged/v1/device/b/status", "forged")).die()
    guest("device", "a", will=("edged/v1/device/a/status", "own")).die()
    assert all(
        topic != "edged/v1/device/b/status" or text != "forged"
        for topic, text in observer.until("edged/v1/device/a/status", "own")
    )


def test_a_device_under_the_client_id_of_another_gets_none_of_its_jobs(guest: Connect) -> None:
    b = guest("device", "b", client_id="b")
    assert b.subscribe("edged/v1/device/b/job")
    b.close()
    thief = guest("device", "a", client_id="b")  # takes over the session with its subscription
    sender = guest("sender", "gateway")
    assert sender.publish("edged/v1/device/b/job", "secret")
    assert thief.subscribe("edged/v1/device/a/job")
    assert sender.publish("edged/v1/device/a/job", "own")
    assert thief.until("edged/v1/device/a/job", "own") == []


def test_who_leaves_a_group_takes_no_jobs_with_it(fleet: Fleet, make_device: Make, guest: Connect) -> None:
    """The broker's session of a device that is off would have its turn, without the right to be given anything."""
    leaves, stays = fleet.new_device("yard"), fleet.new_device("yard")
    link(make_device, fleet, leaves, "yard").up().link.stop(PATIENCE)
    a = link(make_device, fleet, stays, "yard").up()
    fleet.must("device", leaves, "--groups")
    jobs = group_jobs(guest("sender", "gateway"), "yard")
    assert [a.wait_for(JobReceived).message.payload for _ in jobs] == jobs


def test_the_rights_of_a_device_are_the_topics_of_its_link(fleet: Fleet) -> None:
    """Read back from what the broker saved: no right that the contract does not name."""
    saved = json.loads((fleet.folder / "broker/dynamic-security.json").read_text())
    assert not any(allow for kind, allow in saved["defaultACLAccess"].items() if kind != "unsubscribe")
    (role,) = [role for role in saved["roles"] if role["rolename"] == "device-b"]
    topics = {kind: {acl["topic"] for acl in role["acls"] if acl["acltype"] == kind} for kind in
              ("publishClientSend", "publishClientReceive", "subscribeLiteral", "subscribePattern")}  # fmt: skip
    own = "edged/v1/device/b"
    heard = {f"{own}/{channel}" for channel in ("job", "cancel", "status", "health", "desired", "cmd/+/+")}
    told = {f"edged/v1/group/fleet/{channel}" for channel in ("cancel", "desired", "cmd/+/+")}
    words = {"edged/v1/group/fleet/ping", "edged/v1/group/fleet/pong"}
    shares = "edged/v1/group/fleet"
    given, offers = {f"{shares}/give/b", f"{shares}/given/b"}, {f"{shares}/offer/+"}
    assert topics == {
        "publishClientSend": {
            f"{own}/{said}"
            for said in ("event/+", "result/+", "stream/+", "status", "info", "health", "bridge", "reported", "cmd/+/+")
        }
        | words
        | {f"{shares}/give/+", f"{shares}/given/+", f"{shares}/offer/b"}
        | {f"{own}/check", "edged/v1/reply/#"},
        "publishClientReceive": heard
        | words
        | told
        | {f"{own}/check"}
        | given
        | offers
        | {"edged/v1/group/fleet/job", "edged/v1/group/fleet/model/+/job"},
        "subscribeLiteral": heard
        | words
        | {f"{own}/check", f"$share/b/{own}/check"}
        | given
        | told
        | {"$share/fleet/edged/v1/group/fleet/job"},
        "subscribePattern": {"$share/fleet/edged/v1/group/fleet/model/+/job"} | offers,
    }
