"""edged.service on a booted systemd, from its first start to its last. The tests run in this order, on one machine."""

from __future__ import annotations

import json
import time

from conftest import IMPATIENT, PROJECT, SETTINGS, Machine

ORDER = "Command to JSON:\nstop pump 7"
LONG = {"prompt": [1, 5, 9], "max_tokens": 900, "ignore_eos": True}


def test_without_a_broker_it_is_ready_and_says_what_is_missing(machine: Machine) -> None:
    machine.shell("systemctl stop mosquitto && systemd-sysusers && systemctl enable -q --now edged")
    assert machine.show("ActiveState") == "active"
    machine.until_status("not connected")


def test_the_broker_comes_and_a_job_is_answered_rightly(machine: Machine) -> None:
    machine.shell("systemctl start mosquitto")
    machine.until_status("serving")
    for number, sample in enumerate(json.loads((PROJECT / "edged/demo/model/samples.json").read_text())):
        if "'" not in json.dumps(sample):  # the shell's quote
            result = machine.ask_document({"id": f"sample-{number}", "messages": sample["messages"]})
            assert result["text"] == sample["answer"]


def test_the_journal_has_each_field(machine: Machine) -> None:
    (entry,) = machine.events("model_serving")
    assert (entry["EDGED_ARCHITECTURE"], entry["PRIORITY"]) == ("phi3", "6")
    assert json.loads(entry["MESSAGE"])["event"] == "model_serving"


def test_its_state_is_its_own(machine: Machine) -> None:
    assert machine.shell("stat -c '%U %a' /var/lib/edged") == "edged 700"
    assert machine.show("User") == "edged"


def test_after_a_kill_it_is_back_and_the_job_is_answered_once(machine: Machine) -> None:
    heard = "/tmp/heard"
    machine.shell(
        f"mosquitto_sub -h 127.0.0.1 -V 5 -v -t 'edged/v1/device/board/result/#' >{heard} 2>&1 & sleep 1", check=False
    )
    send = (
        f"mosquitto_pub -h 127.0.0.1 -V 5 -q 1 -t edged/v1/device/board/job -m '{json.dumps({'id': 'killed', **LONG})}'"
    )
    machine.shell(send)
    machine.until(lambda: machine.shell("cat /var/lib/edged/running").count("[]") == 0, "it never ran")
    machine.shell("systemctl kill -s KILL edged")
    machine.until(lambda: "succeeded" in machine.shell(f"cat {heard}"), "no answer after the kill")
    machine.shell(send)  # a repeat is answered with the same result, and not run again
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
    machine.shell("systemctl reload edged")
    (entry,) = machine.until(lambda: machine.events("reload_refused"), "nothing was said")
    assert "heartbeat_seconds = -1" in entry["EDGED_REASON"]
    assert machine.ask("after-refusal", ORDER)["state"] == "succeeded"


def test_a_start_with_a_wrong_setting_ends_for_good_and_says_why(machine: Machine) -> None:
    machine.shell("systemctl restart edged", check=False)
    machine.until(lambda: machine.show("ActiveState") == "failed", "it tries again and again")
    assert machine.show("ExecMainStatus") == "78"
    assert machine.shell("cat /var/lib/edged/last-exit") == "exit-code exited 78"
    assert "heartbeat_seconds = -1" in machine.shell("journalctl -q -u edged -n 20 -o cat")
    (machine.root / "etc/edged/edged.toml").write_text(SETTINGS)
    machine.shell("systemctl reset-failed edged && systemctl start edged")
    machine.until_status("serving")


def test_a_stop_drains_and_the_broker_keeps_what_comes_meanwhile(machine: Machine) -> None:
    send = "mosquitto_pub -h 127.0.0.1 -V 5 -q 1 -t edged/v1/device/board/job -m"
    drained, meanwhile = {"id": "drained", **LONG}, {"id": "meanwhile", "prompt": [1, 5], "max_tokens": 2}
    machine.shell(f"{send} '{json.dumps(drained)}'")
    machine.until(lambda: machine.shell("cat /var/lib/edged/running").count("[]") == 0, "it never ran")
    began = time.monotonic()
    machine.shell("systemctl stop edged")
    assert time.monotonic() - began < 60
    assert machine.show("Result") == "success"
    assert machine.shell("cat /var/lib/edged/last-exit") == "success exited 0"
    machine.shell(f"{send} '{json.dumps(meanwhile)}'")
    machine.shell("systemctl start edged")
    machine.until_status("serving")
    for job in (drained, meanwhile):  # the same again: the result comes again
        assert machine.ask_document(job)["state"] == "succeeded"


def test_the_units_are_clean_and_closed(machine: Machine) -> None:
    assert machine.shell("systemd-analyze verify --man=no /lib/systemd/system/edged.service 2>&1") == ""
    (machine.root / "etc/systemd/system/edged.service.d/test.conf").unlink()
    table = machine.shell("systemd-analyze security --offline=yes --threshold=15 /lib/systemd/system/edged.service")
    (machine.root / "etc/systemd/system/edged.service.d/test.conf").write_text(IMPATIENT)
    print(table.splitlines()[-1])
