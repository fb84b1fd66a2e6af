"""edged.service on a booted systemd, from its first start to its last."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import GROWING_PAUSES, IMPATIENT, PROJECT, PYTHON, SETTINGS, Machine, run

ORDER = "Command to JSON:\nstop pump 7"
OTHER = "1.30.0"
"""An onnxruntime that the package does not carry."""
LONG = {"prompt": [1, 5, 9], "max_tokens": 900, "ignore_eos": True}


def test_a_cold_boot_without_a_broker_ends_ready(machine: Machine) -> None:
    (machine.root / "etc/edged/edged.toml").write_text(SETTINGS)
    drop_in = machine.root / "etc/systemd/system/edged.service.d"
    drop_in.mkdir()
    (drop_in / "test.conf").write_text(IMPATIENT)
    machine.power_off()
    for path in (machine.root / "usr").rglob("*"):  # what a cold boot reads from the card
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    machine.boot()
    assert machine.show("ActiveState") == "active"
    machine.until_status("not connected")
    pid, ready = machine.show("MainPID"), machine.show("ActiveEnterTimestampMonotonic")
    booted = machine.shell("systemctl show -P UserspaceTimestampMonotonic")
    processes = machine.shell(f"ps -o rss= -p {pid} --ppid {pid}")
    print(f"cold boot to ready: {(int(ready) - int(booted)) / 1e6:.1f} s after systemd's first instant")
    print(f"RSS with the template's process: {sum(map(int, processes.split())) / 1024:.0f} MiB, demo model")


def test_the_broker_comes_and_a_job_is_answered_rightly(machine: Machine) -> None:
    machine.shell("systemctl start mosquitto")
    machine.until_status("serving")
    for number, sample in enumerate(json.loads((PROJECT / "edged/demo/model/samples.json").read_text())):
        if "'" not in json.dumps(sample):  # the shell's quote
            result = machine.ask_document({"id": f"sample-{number}", "messages": sample["messages"]})
            assert result["text"] == sample["answer"]


def test_the_journal_has_each_field(machine: Machine) -> None:
    entry = machine.events("model_serving")[-1]
    assert (entry["EDGED_ARCHITECTURE"], entry["PRIORITY"]) == ("phi3", "6")
    assert json.loads(entry["MESSAGE"])["event"] == "model_serving"


def test_its_state_is_its_own(machine: Machine) -> None:
    assert machine.shell("stat -c '%U %a' /var/lib/edged") == "edged 700"
    assert machine.show("User") == "edged"


def test_after_a_kill_it_is_back_and_the_job_is_answered_once(machine: Machine) -> None:
    heard = "/tmp/heard"
    listen = f"mosquitto_sub {machine.broker} -V 5 -v -t 'edged/v1/device/board/result/#'"
    machine.shell(f"{listen} >{heard} 2>&1 & sleep 1", check=False)
    machine.send({"id": "killed", **LONG})
    machine.until_running()
    machine.shell("kill -9 $(systemctl show -P MainPID edged)")
    machine.until(lambda: "succeeded" in machine.shell(f"cat {heard}"), "no answer after the kill")
    machine.send({"id": "killed", **LONG})  # a repeat is answered with the same result, and not run again
    machine.until(lambda: machine.shell(f"cat {heard}").count("result/killed") == 2, "the repeat was not answered")
    first, second = [line.split(" ", 1)[1] for line in machine.shell(f"cat {heard}").splitlines() if "/killed" in line]
    assert first == second
    machine.shell("pkill mosquitto_sub")


def test_a_process_that_stands_still_is_restarted_by_the_watchdog(machine: Machine) -> None:
    machine.until_status("serving")
    restarts, pid = int(machine.show("NRestarts")), machine.show("MainPID")
    machine.shell(f"kill -STOP {pid}")
    machine.until(lambda: int(machine.show("NRestarts")) > restarts, "no restart")
    machine.until_status("serving")
    assert machine.show("MainPID") != pid
    assert machine.ask("after-watchdog", ORDER)["state"] == "succeeded"
    assert "watchdog" in machine.shell("journalctl -q -u edged -g 'watchdog' -o cat")


def test_a_reload_takes_new_settings_in_the_same_process(machine: Machine) -> None:
    pid = machine.show("MainPID")
    settings = machine.root / "etc/edged/edged.toml"
    settings.write_text(SETTINGS.replace("fleet", "other"))
    machine.shell("systemctl reload edged")
    machine.until(lambda: len(machine.events("reloading")) == 1, "no reload")
    machine.until_status("serving")
    assert machine.show("MainPID") == pid
    assert machine.ask("after-reload", ORDER)["state"] == "succeeded"


def test_a_reload_with_a_wrong_setting_changes_nothing(machine: Machine) -> None:
    settings = machine.root / "etc/edged/edged.toml"
    settings.write_text("heartbeat_seconds = -1\n" + SETTINGS)
    pid = machine.show("MainPID")
    assert "Job for edged.service failed" in machine.shell("! systemctl reload edged 2>&1")
    status = machine.shell("systemctl status edged")
    assert "heartbeat_seconds = -1" in status
    assert "status=78" in status
    assert machine.events("reload_refused") == []  # it was not asked
    machine.shell(f"kill -HUP {pid}")
    (entry,) = machine.until(lambda: machine.events("reload_refused"), "nothing was said")
    assert "heartbeat_seconds = -1" in entry["EDGED_REASON"]
    assert machine.ask("after-refusal", ORDER)["state"] == "succeeded"
    assert (machine.show("MainPID"), machine.show("ActiveState")) == (pid, "active")


def test_a_start_with_a_wrong_setting_ends_for_good_and_says_why(machine: Machine) -> None:
    machine.shell("systemctl restart edged", check=False)
    machine.until(lambda: machine.show("ActiveState") == "failed", "it tries again and again")
    assert machine.show("ExecMainStatus") == "78"
    assert machine.shell("cat /var/lib/edged/last-exit") == "exit-code exited 78"
    assert "heartbeat_seconds = -1" in machine.shell("journalctl -q -u edged -n 20 -o cat")
    (machine.root / "etc/edged/edged.toml").write_text(SETTINGS)
    machine.shell("systemctl reset-failed edged && systemctl start edged")
    machine.until_status("serving")


def test_a_fault_that_lasts_is_outlived(machine: Machine) -> None:
    """Another program has the port for longer than systemd's start limits have patience."""
    machine.shell("systemctl stop edged")
    hasty = machine.root / "etc/systemd/system/edged.service.d/zz-hasty.conf"
    hasty.write_text("[Service]\nRestartSec=100ms\n" + "RestartSteps=0\n" * GROWING_PAUSES)
    machine.shell("systemctl daemon-reload")
    listen = "import socket, signal; s = socket.create_server(('127.0.0.1', 9765)); signal.pause()"
    holder = machine.shell(f'python3 -c "{listen}" >/dev/null 2>&1 & echo $!')
    machine.shell("systemctl start edged", check=False)
    machine.until(lambda: int(machine.show("NRestarts")) > 20, "it gave up")
    assert "http.port = 9765 on 127.0.0.1 cannot be had" in machine.shell("journalctl -q -u edged -n 30 -o cat")
    machine.shell(f"kill {holder}")
    machine.until_status("serving")
    hasty.unlink()
    machine.shell("systemctl daemon-reload")


def test_a_disk_for_its_state_may_come_late(machine: Machine) -> None:
    """Nothing is written beneath the mount meanwhile, and whoever mounts it need not think of edged."""
    machine.shell("systemctl stop edged")
    helper = machine.root / "usr/sbin/mount.late"
    helper.write_text("#!/bin/sh\n[ -d /srv/disk ] && exec mount --bind /srv/disk /var/lib/edged\nexit 32\n")
    helper.chmod(0o755)
    table = machine.root / "etc/fstab"
    shipped = table.read_text()
    table.write_text("disk /var/lib/edged late nofail 0 0\n")
    machine.shell("systemctl daemon-reload")
    machine.shell("! systemctl start edged")
    assert machine.show("ActiveState") == "inactive"
    machine.shell("mkdir /srv/disk && mount /var/lib/edged")
    machine.until_status("serving")
    assert machine.shell("stat -c %U /srv/disk/spool.db") == "edged"
    machine.shell("systemctl stop edged && umount /var/lib/edged && rm -r /srv/disk /usr/sbin/mount.late")
    table.write_text(shipped)
    machine.shell("systemctl daemon-reload && systemctl start edged")
    machine.until_status("serving")


@pytest.mark.skipif(not GROWING_PAUSES, reason="systemd 252 has one pause for all")
def test_pauses_between_restarts_grow(machine: Machine) -> None:
    machine.shell("systemctl reset-failed edged; rm /etc/systemd/system/edged.service.d/test.conf")
    machine.shell("systemctl daemon-reload")
    assert machine.show("RestartUSecNext") == machine.show("RestartUSec") == "5s"
    machine.shell("kill -9 $(systemctl show -P MainPID edged)")
    machine.until(lambda: machine.show("NRestarts") == "1", "no restart")
    machine.until_status("serving")
    assert machine.show("RestartUSecNext").startswith("6.")
    (machine.root / "etc/systemd/system/edged.service.d/test.conf").write_text(IMPATIENT)
    machine.shell("systemctl daemon-reload && systemctl restart edged")
    machine.until_status("serving")


def test_a_stop_drains_and_the_broker_keeps_what_comes_meanwhile(machine: Machine) -> None:
    drained, meanwhile = {"id": "drained", **LONG}, {"id": "meanwhile", "prompt": [1, 5], "max_tokens": 2}
    machine.send(drained)
    machine.until_running()
    began = time.monotonic()
    machine.shell("systemctl stop edged")
    assert time.monotonic() - began < 60
    assert machine.show("Result") == "success"
    assert machine.shell("cat /var/lib/edged/last-exit") == "success exited 0"
    machine.send(meanwhile)
    machine.shell("systemctl start edged")
    machine.until_status("serving")
    for job in (drained, meanwhile):  # the same again: the result comes again
        assert machine.ask_document(job)["state"] == "succeeded"


def test_the_broker_goes_and_comes_back(machine: Machine) -> None:
    machine.shell("systemctl stop mosquitto")
    machine.until_status("not connected")
    assert machine.show("ActiveState") == "active"
    machine.shell("systemctl start mosquitto")
    machine.until_status("serving")
    assert machine.ask("after-the-broker", ORDER)["state"] == "succeeded"


def test_a_further_instance_runs_beside_it(machine: Machine) -> None:
    own = SETTINGS.replace('"board"', '"hall"') + "[http]\nport = 9766\n"
    (machine.root / "etc/edged/hall.toml").write_text(own)
    machine.shell("systemctl start edged@hall")
    assert machine.shell("stat -c '%U %a' /var/lib/edged/instances/hall") == "edged 700"
    machine.until(lambda: machine.shell("systemctl show edged@hall -P StatusText").startswith("serving"), "not serving")
    job = {"id": "to-hall", "messages": [{"role": "user", "content": ORDER}]}
    assert machine.ask_document(job, device="hall")["device"] == "hall"
    assert machine.ask("to-the-first", ORDER)["device"] == "board"
    (machine.root / "etc/edged/hall.toml").write_text("heartbeat_seconds = -1\n" + own)
    machine.shell("! systemctl reload edged@hall")
    assert "heartbeat_seconds = -1 (from /etc/edged/hall.toml)" in machine.shell("systemctl status edged@hall")
    (machine.root / "etc/edged/hall.toml").write_text(own)
    machine.shell("systemctl stop edged@hall")
    assert machine.shell("cat /var/lib/edged/instances/hall/last-exit") == "success exited 0"


def runtime(machine: Machine) -> tuple[str, str]:
    """The onnxruntime that the device says it computes with, and why it computes on what it does."""
    said = machine.shell(f"mosquitto_sub {machine.broker} -V 5 -C 1 -W 20 -t edged/v1/device/board/info")
    info = json.loads(said)
    return info["versions"]["onnxruntime"], info["model"].get("execution_provider_reason", "")


def test_another_onnxruntime_computes_out_of_a_wheel(machine: Machine, tmp_path: Path) -> None:
    carried, _ = runtime(machine)
    download = f"{sys.executable} -m pip --disable-pip-version-check download -q --no-deps --only-binary=:all:"
    run(*download.split(), f"--python-version={PYTHON}", "-d", tmp_path, f"onnxruntime=={OTHER}")
    (wheel,) = tmp_path.iterdir()
    shutil.copy(wheel, machine.root / "root")
    machine.shell(f"install -D -m 644 -t /etc/edged/wheels /root/{wheel.name}")
    settings = machine.root / "etc/edged/edged.toml"
    settings.write_text(SETTINGS + '[model]\nruntime_wheels = "/etc/edged/wheels"\n')
    machine.shell("systemctl reload edged")
    machine.until(lambda: runtime(machine) == (OTHER, "the package was made for CPU"), "it does not compute with it")
    assert carried != OTHER
    assert json.loads(machine.ask("with-the-wheel", ORDER)["text"])["target"] == "pump 7"
    print(f"unpacked and tried in {machine.events('runtime_from_wheel')[-1]['EDGED_SECONDS']} s")
    assert f"onnxruntime {OTHER} computes on CPU, from /etc/edged/wheels/{wheel.name}" in machine.shell("edged doctor")
    machine.shell("systemctl restart edged")
    machine.until_status("serving")
    print(f"tried at a further start in {machine.events('runtime_from_wheel')[-1]['EDGED_SECONDS']} s")
    assert runtime(machine)[0] == OTHER

    with zipfile.ZipFile(machine.root / f"etc/edged/wheels/{wheel.name}", "w") as broken:
        broken.writestr("onnxruntime/__init__.py", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    machine.shell("systemctl reload edged")
    machine.until(lambda: "/etc/edged/wheels is not used" in runtime(machine)[1], "it does not say so")
    assert runtime(machine)[0] == carried
    (entry,) = machine.events("runtime_wheels_refused")
    assert "it ended by SIGSEGV while it was imported and checked" in entry["EDGED_REASON"]
    assert json.loads(machine.ask("without-it", ORDER)["text"])["target"] == "pump 7"
    said = machine.shell("edged doctor")
    assert "warn  runtime   model.runtime_wheels = /etc/edged/wheels is not used: " in said

    machine.shell("rm -r /etc/edged/wheels")
    settings.write_text(SETTINGS)
    machine.shell("systemctl reload edged")
    machine.until(lambda: runtime(machine) == (carried, "the package was made for CPU"), "it is not as it was")
    assert (
        machine.shell("ls -A /var/lib/edged/runtimes /var/tmp | grep -v systemd", check=False)
        == "/var/lib/edged/runtimes:\n\n/var/tmp:"
    )


def test_confined_it_reads_the_sensors_and_is_refused_its_threads_affinity(machine: Machine) -> None:
    """Refused by an error, which onnxruntime goes on after, and not by a kill. The sensor is a Pi 5's."""
    shutil.copytree(PROJECT / "tests/fixtures/boards/pi5/sys/class/thermal", machine.root / "srv/thermal")
    (machine.root / "srv/affinity.py").write_text(
        "import os\ntry:\n    os.sched_setaffinity(0, {0})\nexcept PermissionError:\n    print('affinity refused')\n"
    )
    more = machine.root / "etc/systemd/system/edged.service.d/zz-sensors.conf"
    more.write_text(
        "[Service]\nBindReadOnlyPaths=/srv/thermal:/sys/class/thermal\nExecStartPre=/usr/bin/python3 /srv/affinity.py\n"
    )
    machine.shell("systemctl daemon-reload && systemctl restart edged")
    machine.until_status("serving")
    assert "affinity refused" in machine.shell("journalctl -q -u edged -n 40 -o cat")
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9765/metrics').read().decode())"
    celsius = [line for line in machine.shell(f'python3 -c "{ask}"').splitlines() if "board_temperature" in line]
    assert celsius[-1].endswith(" 52.35")
    assert "</html>" in machine.shell(f'python3 -c "{ask.replace("metrics", "")}"')
    more.unlink()
    machine.shell("systemctl daemon-reload && systemctl restart edged && rm -r /srv/thermal /srv/affinity.py")
    machine.until_status("serving")


def test_the_units_are_clean_and_closed(machine: Machine) -> None:
    units = "/usr/lib/systemd/system/edged.service"
    assert machine.shell(f"systemd-analyze verify --man=no {units} edged@hall.service 2>&1") == ""
    drop_in = machine.root / "etc/systemd/system/edged.service.d/test.conf"
    drop_in.unlink()
    table = machine.shell(f"systemd-analyze security --offline=yes --threshold=15 {units}")
    drop_in.write_text(IMPATIENT)
    print(table.splitlines()[-1])
