"""The commands beside a running daemon: submit, forget, generate, config."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from broker_rig import free_port
from daemon_fixtures import REFERENCE, Client5, Daemon, Place, job, reference_job
from patience import PATIENCE, eventually

pytest_plugins = ["daemon_fixtures"]


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.startswith("edged: ")


def check(cases: list[tuple[subprocess.Popen[str], str, int]]) -> None:
    for process, text, code in cases:
        _out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, one_line(err)) == (code, True), (process.args, text, err)


def test_submit_streams_the_answer(client: Client5, daemon: Daemon) -> None:
    done = daemon.command("submit", "The device", "--id", "asked", "--max-tokens", "12", "--device", "board")
    assert done.returncode == 0, done.stderr
    assert len(client.all("stream/asked")) > 1
    text = client.result("asked")["text"]
    assert done.stdout == text + "\n"
    again = daemon.command("submit", "The device", "--id", "asked", "--max-tokens", "12")
    assert (again.returncode, again.stdout) == (0, text + "\n")  # nothing is streamed of what ran before


def test_submit_prints_the_result_document(client: Client5, daemon: Daemon) -> None:
    done = daemon.command("submit", "--job", "-", "--json", input=json.dumps(reference_job("document")))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == client.result("document")
    assert not client.all("stream/document")


def test_submit_is_cancelled_by_ctrl_c(client: Client5, daemon: Daemon) -> None:
    # Where a script runs these tests in the background, its shell has SIGINT ignored, and children take that over.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    daemon.pace(0.02)
    process = daemon.background("submit", "x", "--id", "interrupted", "--max-tokens", "400")
    client.wait("stream/interrupted")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, (out, err)
    assert "cancelled on request" in err
    assert "Traceback" not in err
    assert client.result("interrupted")["state"] == "cancelled"
    assert client.events("interrupted").count("accepted") == 1  # Ctrl-C does not send the job again


@pytest.mark.slow
def test_submit_ends_with_a_code_and_one_line(client: Client5, daemon: Daemon) -> None:
    client.ask(job("occupied"))
    cases = []
    for arguments, text, code in (
        (["--job", "-"], "{", 2),
        (["--job", "-"], "[]", 2),
        (["--job", "/nowhere/job.json"], "", 2),
        (["--job", "-"], '{"prompt": "x", "max_tokens": 0}', 2),
        (["--job", "-"], json.dumps(job("occupied", 9)), 2),
        (["--job", "-"], json.dumps(job("long", 512)), 1),
        ([], "", 2),
        (["x", "--device", "nobody", "--timeout", "0.5"], "", 1),
        (["x", "--device", "a#", "--timeout", "0.5"], "", 2),
        (["x", "--group", "a/b", "--timeout", "0.5"], "", 2),
    ):
        cases.append((daemon.background("submit", *arguments, stdin=text), text, code))
    check(cases)


@pytest.mark.slow
def test_submit_says_whom_it_waits_for_and_what_is_known(place: Place) -> None:
    daemon = place.daemon()
    nobody = daemon.background("submit", "x", "--device", "nobody", "--timeout", "10")
    group = daemon.background("submit", "x", "--group", "nowhere", "--timeout", "10")
    unplugged = daemon.background("submit", "x", "--mqtt-port", str(free_port()), "--timeout", "10")
    daemon.start()
    daemon.end()
    offline = daemon.background("submit", "x", "--id", "status", "--max-tokens", "4", "--timeout", str(PATIENCE))
    assert offline.stderr
    line = offline.stderr.readline()
    assert (
        line == f"edged: board at 127.0.0.1:{place.broker.port} is offline (stopped); it gets the job once it is back\n"
    )
    daemon.start()
    _out, err = offline.communicate(timeout=PATIENCE)
    assert (offline.returncode, "offline" in err) == (0, False), err
    _out, err = nobody.communicate(timeout=PATIENCE)
    assert "nobody at 127.0.0.1" in err
    assert "is the name right?" in err
    assert "no device has accepted it, but one that comes back may: the same --id fetches" in err
    _out, err = group.communicate(timeout=PATIENCE)
    assert "no device takes jobs of the group nowhere, says the broker at 127.0.0.1" in err
    _out, err = unplugged.communicate(timeout=PATIENCE)
    assert "no broker listens there" in err
    assert "has not accepted" not in err  # nobody was asked


@pytest.mark.slow
def test_all_of_it_works_over_ipv6(place: Place) -> None:
    port = free_port()
    place.broker.kill()
    place.broker.configure(lines=[f"listener {port} ::1"])
    place.broker.start()
    settings = {"mqtt__host": "::1", "mqtt__port": str(port), "http__host": "::", "http__plain_text": "true"}
    daemon = place.daemon(**settings).start()
    assert f'"broker": "[::1]:{port}"' in daemon.log()
    done = daemon.command("submit", "x", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr
    findings = {found["check"]: found for found in json.loads(daemon.command("doctor", "--json").stdout)}
    assert findings["broker"]["message"] == f"edged is running, connected to [::1]:{port} over MQTT 5"
    assert findings["model"]["message"] == "edged is running and says that it is ready; not loaded a second time"


@pytest.mark.slow
def test_submit_says_that_a_result_was_not_kept(client: Client5, daemon: Daemon) -> None:
    for code in (0, 1):
        done = daemon.command("submit", "--job", "-", input=json.dumps(job("unkept", store=False)))
        assert done.returncode == code, done.stderr
        client.ask(job(f"unkept-after-{code}"))
    assert "not kept" in done.stderr


@pytest.mark.slow
def test_submit_sends_again_until_a_device_accepts_and_after_the_broker_came_back(place: Place) -> None:
    daemon = place.daemon(paced=True)
    process = daemon.background("submit", "x", "--id", "patient", "--max-tokens", "4")
    client = place.client()
    daemon.pace("hold")
    daemon.start()
    client.event("patient", "accepted")
    place.broker.kill()
    daemon.until_fault("not connected")
    place.broker.start()
    daemon.pace("")
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "not connected" in err
    assert daemon.query("SELECT count(*) FROM job") == [(1,)]


def files(daemon: Daemon) -> bytes:
    return b"".join(file.read_bytes() for file in daemon.state_dir.iterdir() if file.is_file())


def test_forget_erases_a_job_beside_the_running_daemon(client: Client5, daemon: Daemon) -> None:
    document = job("secret", prompt="walrus-on-the-roof", metadata={"n": "narwhal"})
    client.ask(document)
    assert b"walrus" in files(daemon)
    done = daemon.command("forget", "secret")
    assert (done.returncode, done.stdout) == (0, "erased 1 job\n")
    assert b"walrus" not in files(daemon)
    assert b"narwhal" not in files(daemon)
    eventually(lambda: "secret" not in [told["id"] for told in json.loads(daemon.get("/status.json")[1])["jobs"]])
    client.send(document)
    client.result("secret", 2)  # the id is new again
    assert client.events("secret") == ["accepted", "started"] * 2


def test_forget_of_a_job_that_waits_and_of_one_that_runs(client: Client5, daemon: Daemon) -> None:
    daemon.pace("hold")
    for id in ("f-runs", "f-ready", "f-waits"):
        client.send(job(id))
        client.event(id, "accepted")
    for id in ("f-runs", "f-waits"):
        assert daemon.command("forget", id).returncode == 0
    client.send(job("f-waits", 5))  # its id is free for another
    client.event("f-waits", "accepted")
    daemon.pace("")
    assert client.result("f-waits")["usage"]["completion_tokens"] == 5
    client.ask(job("after-forget"))
    assert not client.all("result/f-runs")
    assert len(client.all("result/f-waits")) == 1


def test_forget_everything(client: Client5, daemon: Daemon) -> None:
    client.ask(job("all-1", prompt="pelican-in-the-well"))
    assert daemon.command("forget", "--all").returncode == 0
    assert daemon.query("SELECT count(*) FROM job") == [(0,)]
    assert b"pelican" not in files(daemon)
    assert client.ask(job("all-2"))["state"] == "succeeded"


@pytest.mark.slow
def test_forget_of_what_is_not_there_is_one_line(client: Client5, daemon: Daemon) -> None:
    unknown, nothing = daemon.command("forget", "nobody"), daemon.command("forget")
    assert (unknown.returncode, one_line(unknown.stderr)) == (1, True)
    assert (nothing.returncode, one_line(nothing.stderr)) == (2, True)


@pytest.mark.slow
def test_generate_answers_right_without_a_broker(daemon: Daemon) -> None:
    document = reference_job("g")
    done = daemon.command("generate", "--job", "-", "--json", input=json.dumps(document))
    assert json.loads(done.stdout)["token_ids"] == REFERENCE[0]["output_ids"]
    text = daemon.command("generate", "--job", "-", input=json.dumps(document))
    assert text.stdout == json.loads(done.stdout)["text"] + "\n"
    asked = daemon.command("generate", "Hello", "--max-tokens", "3")
    assert asked.returncode == 0, asked.stderr


@pytest.mark.slow
def test_generate_ends_with_a_code_and_one_line(daemon: Daemon, shared: Place) -> None:
    cases = []
    for arguments, text, code in (
        (["--job", "-"], "{", 2),
        (["--job", "-"], '{"prompt": "x", "store": 1}', 2),
        (["--job", "-"], json.dumps(job("g", 512)), 2),
        (["x", "--model", str(shared.folder)], "", 1),
        (["x", "--model", str(shared.folder / "gone")], "", 2),
    ):
        cases.append((daemon.background("generate", *arguments, stdin=text), text, code))
    check(cases)


def test_a_wrong_setting_is_one_line_and_78(daemon: Daemon) -> None:
    for command in ("config", "run"):
        place = Daemon(daemon.folder, 1883, HTTP__PORT="many")
        done = place.command(command)
        assert (done.returncode, one_line(done.stderr)) == (78, True)
        assert "http.port" in done.stderr


def model_finding(daemon: Daemon) -> tuple[str, str]:
    """What doctor says of the model: its state, and in which words."""
    findings = json.loads(daemon.command("doctor", "--json").stdout)
    (found,) = [finding for finding in findings if finding["check"] == "model"]
    return found["state"], found["message"]


@pytest.mark.slow
def test_doctor_asks_the_daemon_instead_of_loading_the_model_again(place: Place) -> None:
    daemon = place.daemon().start()
    assert model_finding(daemon) == ("ok", "edged is running and says that it is ready; not loaded a second time")
    place.broker.kill()
    daemon.until_fault("not connected")
    state, what = model_finding(daemon)
    assert (state, "edged is running and says: broker" in what) == ("warn", True), what


@pytest.mark.slow
def test_doctor_passes_on_that_the_daemons_model_is_broken(place: Place, tmp_path: Path) -> None:
    daemon = place.daemon(model__path=str(tmp_path)).start(ready=False)
    daemon.until_fault("model unavailable")
    state, what = model_finding(daemon)
    assert (state, "edged is running and says: model unavailable" in what) == ("fail", True), what


@pytest.mark.slow
def test_doctor_loads_no_second_model_where_the_daemon_cannot_be_asked(daemon: Daemon) -> None:
    port = daemon.env["EDGED_HTTP__PORT"]
    daemon.env["EDGED_HTTP__PORT"] = "0"
    state, what = model_finding(daemon)
    daemon.env["EDGED_HTTP__PORT"] = port
    assert (state, "http.port = 0" in what, "not loaded" in what) == ("warn", True, True), what
