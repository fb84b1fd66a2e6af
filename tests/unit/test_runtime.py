"""Another onnxruntime out of a folder of wheels: real ones, and what becomes of broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from patience import PATIENCE
from wheel_rig import MACHINE, NAME, PYTHON, SAME, VERSION, WRONG, make

from edged.engine import runtime
from edged.engine.runtime import WheelError, check_wheel, unpack_wheel
from edged.models.store import DEMO_FOLDER

ORDER = "Command to JSON:\nstop pump 7"
ANSWER = '{"intent":"turn_off","target":"pump 7","value":null}'
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def edged(state_dir: Path, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("EDGED_") and "TELEM" not in name}
    settings = {
        "EDGED_STATE_DIR": str(state_dir),
        "EDGED_MODEL__RUNTIME_WHEELS": str(folder),
        "EDGED_DEVICE__ID": "board",
    }
    return subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        env={**keep, **settings, **environment}, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


def findings(done: subprocess.CompletedProcess[str], check: str) -> list[dict[str, str]]:
    return [found for found in json.loads(done.stdout) if found["check"] == check]


def refusal(folder: Path, place: Path) -> str:
    with pytest.raises(WheelError) as caught:
        check_wheel(*unpack_wheel(folder, place), DEMO_FOLDER)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "wheels"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "runtimes"


@pytest.mark.slow
def test_a_wheel_is_unpacked_once_and_computes(folder: Path, tmp_path: Path) -> None:
    wheel = make(folder)
    state, home = tmp_path / "state", tmp_path / "home"
    state.mkdir()
    done = edged(state, folder, "generate", ORDER, HOME=str(home), XDG_CACHE_HOME=str(home))
    assert (done.stdout.strip(), done.stderr) == (ANSWER, "")
    (unpacked,) = (state / "runtimes").iterdir()
    before = unpacked.stat().st_ino
    done = edged(state, folder, "doctor", "--json", EDGED_MQTT__PORT="9", HOME=str(home), XDG_CACHE_HOME=str(home))
    (runtime,) = findings(done, "runtime")
    assert runtime["message"].startswith(f"onnxruntime {VERSION} computes on ")
    assert runtime["message"].endswith(f", from {wheel}")
    assert [path.stat().st_ino for path in (state / "runtimes").iterdir()] == [before]
    assert not home.exists()  # its telemetry is off too


@pytest.mark.slow
def test_a_refused_wheel_costs_a_word_and_no_answer(folder: Path, tmp_path: Path) -> None:
    make(folder, "raise ImportError('libcudnn.so.9: cannot open shared object file')")
    done = edged(tmp_path, folder, "generate", ORDER)
    why = (
        f"model.runtime_wheels = {folder} is not used: {NAME} does not work here: ImportError: libcudnn.so.9: cannot "
        "open shared object file"
    )
    assert (done.stdout.strip(), done.stderr) == (ANSWER, f"edged: {why}\n")
    done = edged(tmp_path, folder, "doctor", "--json", EDGED_MQTT__PORT="9")
    refused, runtime = findings(done, "runtime")
    assert (refused["state"], refused["message"], runtime["state"]) == ("warn", why, "ok")
    model = findings(done, "model")[0]
    assert (model["state"], why in model["message"]) == ("warn", True)
    done = edged(tmp_path, folder, "generate", ORDER, EDGED_MODEL__EXECUTION_PROVIDER="cuda")
    assert done.returncode == 1
    assert "model.execution_provider names cuda" in done.stderr
    assert done.stderr.count(why) == 2  # as a word of its own, and behind what CUDA lacks


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it ended by SIGSEGV while it was imported"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "the check ended without a result"),
        ("import sys; print('{\"fault\": null}', flush=True); sys.exit(1)", "SystemExit: 1"),
        ("def", "SyntaxError"),
        ("import sys; sys.stderr.write('compiled using NumPy 1.x'); raise ImportError", "it was made for numpy 1, "),
        (WRONG, "the model answers otherwise than its known answers say"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_what_a_broken_runtime_does_is_told(folder: Path, place: Path, init: str, words: str) -> None:
    make(folder, init)
    said = refusal(folder, place)
    assert said.startswith(f"{NAME} does not work here: {words}")
    assert "copy the package again" not in said  # it is not the model that is damaged


def test_the_same_runtime_without_the_fault_is_taken(folder: Path, place: Path) -> None:
    wheel = make(folder, SAME)
    found, unpacked = unpack_wheel(folder, place)
    check_wheel(found, unpacked, DEMO_FOLDER)
    assert (found, unpacked.parent) == (wheel, place)
    before = unpacked.stat()
    assert unpack_wheel(folder, place) == (found, unpacked)
    assert unpacked.stat() == before  # it is not unpacked again


def test_several_may_unpack_the_same_wheel_at_once(folder: Path, place: Path) -> None:
    make(folder, SAME)
    at_once = threading.Barrier(4)

    def unpack(_: int) -> tuple[Path, Path]:
        at_once.wait()
        return unpack_wheel(folder, place)

    with ThreadPoolExecutor(4) as pool:
        (found,) = set(pool.map(unpack, range(4)))
    check_wheel(*found, DEMO_FOLDER)
    assert list(place.iterdir()) == [found[1]]


@pytest.mark.slow
def test_a_runtime_that_hangs_is_ended(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "CHECK_SECONDS", 2.0)
    make(folder, "import time; time.sleep(100)")
    assert "gave no answer within 2 s" in refusal(folder, place)


def test_a_wheel_without_the_module_is_none(folder: Path, place: Path) -> None:
    make(folder, SAME)
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        archive.writestr("onnxruntime.py", SAME)
    assert "there is no onnxruntime in it" in refusal(folder, place)


def named(name: str = "onnxruntime", version: str = "1.31.0", python: str = PYTHON, platform: str = MACHINE) -> str:
    return f"{name}-{version}-{python}-{python}-manylinux_2_27_{platform}.manylinux_2_28_{platform}.whl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        named(python="cp38"),
        named().replace(f"-{PYTHON}-{PYTHON}-", f"-{PYTHON}-{PYTHON}t-"),
        named(platform="riscv64"),
        named(version="1.22.1"),
        named(name="onnxruntime_genai"),
        named(name="numpy"),
        named().replace("manylinux", "win"),
    ],
)
def test_a_wheel_for_something_else_is_left_alone(folder: Path, place: Path, name: str) -> None:
    make(folder, SAME, name)
    assert refusal(folder, place) == (
        f"no wheel in it fits: put one onnxruntime or onnxruntime_gpu, 1.23 or newer, for {PYTHON} on {MACHINE} there; "
        f"it has {name}"
    )
    make(folder, SAME)
    check_wheel(*unpack_wheel(folder, place), DEMO_FOLDER)


@pytest.mark.parametrize("name", [named(), named(version="1.31.0-1"), named(version="1.31.0+cu126")])
def test_which_of_two_is_meant_is_not_guessed(folder: Path, place: Path, name: str) -> None:
    make(folder, SAME)
    make(folder, SAME, name)
    assert f"it has 2 wheels that fit ({name}, {NAME})" in refusal(folder, place)


def test_an_empty_folder_and_none_at_all(folder: Path, place: Path) -> None:
    assert refusal(folder, place).startswith("there is no such folder")
    folder.mkdir(mode=0o755)
    assert refusal(folder, place).endswith(f"for {PYTHON} on {MACHINE} there")
    (folder / NAME).mkdir()
    assert refusal(folder, place) == f"{NAME} cannot be unpacked: is a directory"


@pytest.mark.parametrize("path", ["../onnxruntime/evil.py", "onnxruntime/../../evil.py", "/onnxruntime/evil.py"])
def test_no_file_leaves_its_folder(folder: Path, place: Path, path: str) -> None:
    make(folder, SAME, **{path: "x"})
    assert "with paths outside of the folder" in refusal(folder, place)
    assert not list(place.parent.rglob("evil.py"))
    assert not list(place.iterdir())


def test_only_onnxruntime_itself_comes_before_other_modules(folder: Path, place: Path) -> None:
    make(folder, SAME, **{"json.py": "raise SystemExit", "edged/__init__.py": "", "onnxruntime_gpu.libs/a.so": ""})
    _, unpacked = unpack_wheel(folder, place)
    assert {path.name for path in unpacked.iterdir()} == {"onnxruntime", "onnxruntime_gpu.libs"}


def test_damage_is_noticed_while_it_is_unpacked(folder: Path, place: Path) -> None:
    wheel = make(folder, SAME)
    whole = wheel.read_bytes()
    at = whole.index(b"__path__")
    for damaged in (whole[:-100], whole[:at] + b"x" + whole[at + 1 :], b""):
        wheel.write_bytes(damaged)
        assert f"{NAME} is damaged: copy it again" in refusal(folder, place)
    assert not list(place.iterdir())


def test_sizes_are_looked_at_first(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, SAME)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "MOST_BYTES", 100)
        assert "would unpack to" in refusal(folder, place)
    monkeypatch.setattr(runtime, "SPARE_BYTES", 1 << 60)
    assert "must stay free" in refusal(folder, place)
    assert not list(place.iterdir())


def test_code_that_others_could_change_is_not_run(folder: Path, place: Path) -> None:
    wheel = make(folder, SAME)
    for path in (wheel, folder, folder.parent):
        mode = path.stat().st_mode
        for bit in (0o020, 0o002):
            path.chmod(mode | bit)
            assert refusal(folder, place).startswith(f"{path} can be written by others")
        path.chmod(mode)
    folder.chmod(0o1777)
    assert refusal(folder, place).startswith(f"{folder} can be written by others")
    folder.chmod(0o755)
    folder.parent.chmod(0o1777)  # as /tmp is
    check_wheel(*unpack_wheel(folder, place), DEMO_FOLDER)


@root_only
def test_code_of_another_user_is_not_run(folder: Path, place: Path) -> None:
    wheel = make(folder, SAME)
    for path in (wheel, folder):
        os.chown(path, 12345, 0)
        assert refusal(folder, place).startswith(f"{path} belongs to another user")
        os.chown(path, 0, 0)


@pytest.mark.slow
@root_only
def test_root_unpacks_nothing_where_the_daemons_user_could_change_it(folder: Path, tmp_path: Path) -> None:
    make(folder)
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12345, 12345)
    before = {*Path("/var/tmp").iterdir()}
    done = edged(state, folder, "bench", "--rows", "1", "--prompt", "8", "--tokens", "4", "--json")
    assert json.loads(done.stdout)["onnxruntime"] == VERSION
    assert not list(state.iterdir())
    assert {*Path("/var/tmp").iterdir()} <= before


def test_another_wheel_of_the_same_name_is_unpacked_anew(folder: Path, place: Path) -> None:
    make(folder, SAME + " ")
    _, first = unpack_wheel(folder, place)
    make(folder, SAME + "\n")  # of the same size
    _, second = unpack_wheel(folder, place)
    assert first != second
    assert (second / "onnxruntime/__init__.py").read_text() == SAME + "\n"


def test_no_command_loads_a_runtime_before_it_knows_which() -> None:
    asked = "import sys, edged.cli.app; print('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "False\n"
