"""Upgrade, downgrade and removal: what is kept, and what must not be left."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import PYTHON, Machine
from test_install import before
from test_service import LONG, ORDER

MODEL = "/var/lib/edged/models/mine"
kept: dict[str, object] = {}


def version(machine: Machine) -> str:
    """What the device says it runs, to whoever asks the broker."""
    info = machine.shell(f"mosquitto_sub {machine.broker} -V 5 -C 1 -W 20 -t edged/v1/device/board/info")
    return str(json.loads(info)["versions"]["edged"])


def schema(machine: Machine) -> int:
    """The version of the spool's schema."""
    spool = "__import__('sqlite3').connect('/var/lib/edged/spool.db')"
    number = machine.shell(f"python3 -c \"print({spool}.execute('PRAGMA user_version').fetchone()[0])\"")
    return int(number) & 0xFFFF


def change(machine: Machine, package: Path, id: str, options: str = "") -> None:
    """Install another version while the job `id` runs, and see that nothing is lost by it."""
    job = {"id": id, **LONG}
    machine.send(job)
    machine.until_running()
    machine.install(package, options)
    machine.until_status("serving")
    assert machine.ask_document(job)["state"] == "succeeded"
    assert machine.ask("kept", ORDER) == kept["answer"]
    assert machine.shell(f"cat {MODEL}/genai_config.json") == kept["model"]
    assert (machine.root / "etc/edged/edged.toml").read_text() == kept["settings"]


def test_an_upgrade_keeps_jobs_models_and_settings(machine: Machine, later: Path) -> None:
    home = f"/usr/lib/edged/lib/python{PYTHON}/site-packages/edged/demo/model"
    machine.shell(f"mkdir -p {MODEL} && cp {home}/* {MODEL} && chown -R edged: {MODEL}")
    settings = machine.root / "etc/edged/edged.toml"
    settings.write_text(settings.read_text() + f'[model]\npath = "{MODEL}"\n')
    machine.shell("systemctl reload edged")
    machine.until_status("serving mine")
    kept["settings"] = settings.read_text()
    kept["model"] = machine.shell(f"cat {MODEL}/genai_config.json")
    kept["answer"] = machine.ask("kept", ORDER)
    kept["schema"] = schema(machine)
    machine.shell("systemctl enable -q --now edged@hall")
    hall = machine.shell("systemctl show edged@hall -P MainPID")
    change(machine, later, "upgraded")
    assert version(machine) == "99.0"
    assert machine.shell("systemctl is-active edged@hall") == "active"
    assert machine.shell("systemctl show edged@hall -P MainPID") != hall
    assert schema(machine) == int(str(kept["schema"])) + 1


def test_a_downgrade_keeps_them_too(machine: Machine, package: Path) -> None:
    change(machine, package, "downgraded", "--allow-downgrades")
    assert version(machine) != "99.0"
    assert schema(machine) == int(str(kept["schema"])) + 1  # the older one goes on with it


def test_rights_that_the_administrator_gave_stay(machine: Machine, package: Path) -> None:
    settings = "/etc/edged/edged.toml"
    machine.shell(f"chmod 604 {settings}")
    machine.install(package, "--reinstall")
    assert machine.shell(f"stat -c '%U %G %a' {settings}") == "root edged 640"
    machine.shell(f"dpkg-statoverride --update --add root edged 0644 {settings}")
    machine.install(package, "--reinstall")
    assert machine.shell(f"stat -c '%U %G %a' {settings}") == "root edged 644"
    machine.shell(f"dpkg-statoverride --remove {settings}")


def test_who_has_stopped_it_finds_it_stopped_after_an_upgrade(machine: Machine, later: Path) -> None:
    machine.shell("systemctl disable -q --now edged")
    machine.install(later)
    assert machine.shell("systemctl is-enabled edged", check=False) == "disabled"
    assert machine.show("ActiveState") == "inactive"
    machine.shell("systemctl enable -q --now edged")
    machine.until_status("serving")


def test_the_doctor_is_content(machine: Machine) -> None:
    print(machine.shell("edged doctor"))


def test_a_removal_keeps_what_is_the_users(machine: Machine) -> None:
    assert machine.shell("systemctl is-enabled edged@hall && systemctl is-active edged@hall") == "enabled\nactive"
    machine.shell("apt-get remove -y edged")
    assert machine.show("ActiveState") == "inactive"
    assert machine.shell("pgrep -u edged", check=False) == ""
    left = machine.files() - before
    assert {"/var/lib/edged/spool.db", "/etc/edged/edged.toml", f"{MODEL}/model.onnx"} <= left
    assert not [path for path in left if path.startswith("/usr/lib/edged")]


def test_a_purge_leaves_nothing(machine: Machine) -> None:
    machine.shell("rm -rf /etc/systemd/system/edged.service.d /etc/edged-secrets")  # the administrator's own
    machine.shell("apt-get purge -y edged")
    assert machine.files() - before == set()
