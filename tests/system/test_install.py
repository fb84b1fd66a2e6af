"""The package on a machine that has never seen edged, and that has no internet."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Machine

before: set[str] = set()
"""What was there."""
COMPLETE = """\
. /usr/share/bash-completion/completions/edged
COMP_WORDS=(edged doc) COMP_CWORD=1
$(complete -p edged | sed 's/.*-F \\([^ ]*\\).*/\\1/') edged doc edged
echo "${COMPREPLY[@]}"
"""
LIST = "for found in __import__('importlib.metadata').metadata.distributions(): print(found.name, found.version)"


def test_it_installs_and_runs(machine: Machine, package: Path) -> None:
    machine.shell("systemctl disable -q --now mosquitto && touch /etc/hosts")
    before.update(machine.files())
    said = machine.install(package)
    assert "warning" not in said.lower()
    assert "non-existent" not in said
    assert machine.shell("systemctl is-enabled edged") == "enabled"
    assert machine.show("ActiveState") == "active"
    machine.until_status("not connected")


def test_every_file_is_as_it_was_packed(machine: Machine) -> None:
    assert machine.shell("dpkg --verify edged") == ""


def test_the_settings_are_for_root_and_the_service_and_others_are_told_so(machine: Machine) -> None:
    assert machine.shell("stat -c '%U %G %a' /etc/edged/edged.toml") == "root edged 640"
    told = machine.shell("runuser -u nobody -- edged doctor 2>&1; echo $?")
    line = "edged: /etc/edged/edged.toml: this user may not read it: use sudo, or let a group of this user read it"
    assert told == f"{line} (chgrp, chmod g+r)\n78"


def test_every_library_that_it_needs_is_there(machine: Machine) -> None:
    missing = "find /usr/lib/edged -name '*.so*' -type f -exec ldd {} + 2>&1 | grep -E 'not found|GLIBC' || true"
    assert machine.shell(missing) == ""


def test_modules_are_compiled_since_the_service_may_write_none(machine: Machine) -> None:
    compiled = machine.shell("find /usr/lib/edged -path '*/edged/__pycache__/daemon.cpython-*.pyc'")
    assert len(compiled.splitlines()) == 1
    print(machine.shell("du -sh --apparent-size /usr/lib/edged | cut -f1"), "in /usr/lib/edged with what was compiled")


def test_the_command_heeds_no_modules_of_the_folder_it_is_called_in(machine: Machine) -> None:
    machine.shell("mkdir -p /root/trap && echo 'raise SystemExit(\"trapped\")' >/root/trap/json.py")
    found = machine.shell("cd /root/trap && PYTHONPATH=/root/trap edged config --json")
    assert json.loads(found)["mqtt.host"]["from"] == "default"


def test_bash_completes_commands(machine: Machine) -> None:
    (machine.root / "root/complete").write_text(COMPLETE)
    assert machine.shell("bash /root/complete") == "doctor"


def test_it_can_ask_the_hub(machine: Machine) -> None:
    said = machine.shell("HF_ENDPOINT=http://127.0.0.1:9 edged model pull hf:some/model 2>&1", check=False)
    assert "the hub cannot be asked: 127.0.0.1:9 refused the connection" in said
    assert "pip install" not in said


def test_the_bill_of_materials_is_what_lies_there(machine: Machine) -> None:
    bill = json.loads((machine.root / "usr/share/doc/edged/sbom.cdx.json").read_text())
    listed = {(part["name"], part["version"]) for part in bill["components"]}
    there = machine.shell(f'/usr/lib/edged/bin/python3 -I -c "{LIST}"').lower().replace("_", "-").splitlines()
    assert listed | {("edged", bill["metadata"]["component"]["version"])} == {tuple(line.split()) for line in there}
    assert all("hashes" in part and part["licenses"] for part in bill["components"])
