"""A broker with TLS, client certificates and rights, set up as deploy/mosquitto/provision.py says, word for word."""

from __future__ import annotations

import json
import shutil

from conftest import PROJECT, Machine
from test_service import ORDER

HOST, FLEET = "broker.hall", "/root/fleet"


def provision(machine: Machine, arguments: str) -> str:
    return machine.shell(f"python3 /root/mosquitto/provision.py --folder {FLEET} {arguments}")


def test_broker_and_device_are_set_up_as_the_script_says(machine: Machine) -> None:
    shutil.copytree(PROJECT / "deploy/mosquitto", machine.root / "root/mosquitto")
    machine.shell(f"echo '127.0.0.1 {HOST}' >>/etc/hosts")
    said = provision(machine, f"init --host {HOST}")
    machine.shell(f"cp /root/mosquitto/edged.conf {FLEET}/broker/")
    machine.follow(said, f"{FLEET}/broker")
    machine.follow(provision(machine, "device board --groups fleet"), f"{FLEET}/device/board")
    provision(machine, "sender gateway")
    own = f"{FLEET}/sender/gateway"
    machine.broker = f"-h {HOST} -p 8883 --cafile {own}/ca.pem --cert {own}/sender.pem --key {own}/sender.key"
    machine.until_status("serving")
    assert machine.ask("encrypted", ORDER)["state"] == "succeeded"


def test_there_is_no_way_past_the_certificates(machine: Machine) -> None:
    for place in ("-p 1883", f"-p 8883 --cafile {FLEET}/ca.pem"):
        said = machine.shell(f"mosquitto_pub -h {HOST} {place} -q 1 -t edged/v1/x -n 2>&1; echo $?")
        assert said.splitlines()[-1] != "0"


def test_the_key_is_for_root_and_the_service_alone(machine: Machine) -> None:
    assert machine.shell("stat -c '%U %a' /etc/edged-secrets/device.key") == "root 600"
    assert "ermission denied" in machine.shell(
        "runuser -u edged -- cat /etc/edged-secrets/device.key 2>&1", check=False
    )


def test_what_was_sent_survives_a_restart_of_the_broker_while_the_device_is_off(machine: Machine) -> None:
    machine.shell("systemctl stop edged")
    machine.send({"id": "waiting", "messages": [{"role": "user", "content": ORDER}]})
    machine.shell("systemctl restart mosquitto")
    machine.shell("systemctl start --no-block edged")
    result = "edged/v1/device/board/result/waiting"
    answer = machine.shell(f"mosquitto_sub {machine.broker} -V 5 -C 1 -W 30 -t {result}", timeout=40)
    assert json.loads(answer)["state"] == "succeeded"
