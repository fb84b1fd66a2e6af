"""A freshly flashed card: cloud-init on its first boot with what deploy/ makes, and a broker that is locked down."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT, Machine, make_root, run

DEPLOY = PROJECT / "deploy"
LATER = "/etc/cloud/cloud-init.disabled"


@pytest.fixture(scope="module")
def card(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The system before its first boot as a board: with cloud-init, a broker, and the files on the boot partition."""
    if os.geteuid() != 0:
        pytest.skip("booting a container needs root")
    root = tmp_path_factory.mktemp("card") / "root"
    root.mkdir()
    make_root(root)
    run("chroot", root, "apt-get", "update", "-qq")
    run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "cloud-init")
    (root / LATER[1:]).touch()
    # What a card's image has, and this bare system has not.
    (root / "etc/cloud/cloud.cfg.d/99_locale.cfg").write_text("locale: C.UTF-8\n")
    machine = Machine(root)
    for name in ("provision.py", "edged.conf"):
        shutil.copy(DEPLOY / "mosquitto" / name, root / "root")
    provision = "cd /root && python3 provision.py --folder fleet"
    told = machine.shell(f"{provision} init --host 127.0.0.1")
    machine.shell("cp /root/edged.conf /root/fleet/broker/")
    machine.follow(told, "/root/fleet/broker")
    machine.shell(f"{provision} device pi-7 --groups hall-3 && {provision} sender gateway")
    boot = root / "boot/firmware/edged"
    shutil.copytree(root / "root/fleet/device/pi-7", boot)
    shutil.copy(package, boot)
    seed = root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    shutil.copy(DEPLOY / "cloud-init/user-data", seed)
    (seed / "meta-data").write_text("instance-id: flashed\n")
    (root / LATER[1:]).unlink()
    machine.power_off()
    machine = Machine(root)
    yield machine
    machine.power_off()
    shutil.rmtree(root, ignore_errors=True)


def test_the_user_data_is_what_cloud_init_takes(card: Machine) -> None:
    said = card.shell("cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data")
    assert "Valid " in said


def test_it_comes_up_serving_and_doctor_finds_no_fault(card: Machine) -> None:
    status = card.shell("cloud-init status --wait --long", check=False, timeout=300)
    output = card.shell("cat /var/log/cloud-init-output.log")
    assert "status: done" in status, output[-3000:]
    assert re.search(r"^ok    broker    .*127\.0\.0\.1:8883", output, re.M)  # by the daemon, or before it is there
    assert "FAIL" not in output
    print(output[output.index("ok    board") :])
    assert card.shell("systemctl is-enabled edged") == "enabled"
    card.until_status("serving")


def test_it_answers_over_tls_as_the_device_it_was_made(card: Machine) -> None:
    gateway = "/root/fleet/sender/gateway"
    card.broker = (
        f"-h 127.0.0.1 -p 8883 --cafile {gateway}/ca.pem --cert {gateway}/sender.pem --key {gateway}/sender.key"
    )
    sample = json.loads((PROJECT / "edged/demo/model/samples.json").read_text())[0]
    result = card.ask_document({"id": "first", "messages": sample["messages"]}, device="pi-7")
    assert (result["text"], result["device"]) == (sample["answer"], "pi-7")


def test_its_settings_are_for_root_and_the_service(card: Machine) -> None:
    assert card.shell("stat -c '%U %G %a' /etc/edged/edged.toml") == "root edged 640"


def test_its_key_is_roots_alone_and_gone_from_the_boot_partition(card: Machine) -> None:
    assert card.shell("stat -c '%U %a %n' /etc/edged-secrets /etc/edged-secrets/*").splitlines() == [
        "root 700 /etc/edged-secrets",
        "root 600 /etc/edged-secrets/device.key",
    ]
    assert card.shell("ls /boot/firmware/edged | grep -c key", check=False) == "0"
    readable = "su -s /bin/sh edged -c 'cat /etc/edged-secrets/device.key' 2>&1"
    assert "Permission denied" in card.shell(readable, check=False)
