"""What `edged doctor` finds on boards, read from folder trees of theirs."""

from __future__ import annotations

import fcntl
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import open_to_all

from edged.cli.doctor import Finding, _c_library, examine, open_secrets
from edged.machine.board import detect
from edged.machine.board.jetson_wheels import cuda_runtime
from edged.machine.storage import mount_of, swaps_on_card
from edged.settings import Settings, load

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
DROP_INS = Path(__file__).parents[2] / "systemd/edged.service.d"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a board whose broker refuses at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {
        "state_dir": tmp_path / "state",
        "device": {"id": "board"},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "http": {"port": 0},
    }
    return load(Path("/dev/null"), flags).settings


def tree(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(BOARDS / name, tmp_path / name))


def bad(settings: Settings, root: Path, check: str) -> list[Finding]:
    return [found for found in examine(settings, detect(root)) if found.check == check and found.state != "ok"]


@pytest.mark.slow
def test_a_port_that_another_program_has_is_a_failure(settings: Settings) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        http = settings.http.model_copy(update={"host": "::1", "port": other.getsockname()[1]})
        taken = settings.model_copy(update={"http": http})
        (found,) = bad(taken, BOARDS / "pi5", "http")
        assert (found.state, found.hint) == ("fail", "set http.port to a free one")
        settings.state_dir.mkdir()
        with (settings.state_dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # as a running edged does
            assert bad(taken, BOARDS / "pi5", "http") == []


@pytest.mark.parametrize(
    ("place", "words"), [("file", "is a file, and state_dir must be a folder"), ("/proc/edged", "/proc cannot be")]
)
def test_a_state_dir_that_can_be_no_folder_is_a_failure(
    settings: Settings, tmp_path: Path, place: str, words: str
) -> None:
    (tmp_path / "file").touch()
    found = bad(settings.model_copy(update={"state_dir": tmp_path / place}), BOARDS / "pi5", "disk")
    assert [(one.state, words in one.message) for one in found] == [("fail", True)]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with open_to_all() as folder:
        yield folder


def test_a_secret_that_every_user_may_read_is_a_warning(open_folder: Path) -> None:
    settings, secret = open_folder / "edged.toml", open_folder / "key"
    secret.touch(0o644)
    settings.write_text(
        f'[mqtt]\ntls = true\nusername = "u"\npassword = "x"\ncert_file = "{secret}"\nkey_file = "{secret}"\n'
    )
    settings.chmod(0o644)
    assert [found.message.split()[0] for found in open_secrets(load(settings))] == [str(secret), str(settings)]
    secret.chmod(0o600)
    (found,) = open_secrets(load(settings))
    assert (found.state, f"chmod 640 {settings}" in found.hint) == ("warn", True)
    settings.chmod(0o640)
    assert [*open_secrets(load(settings))] == []


def test_settings_without_a_secret_and_secrets_in_a_closed_folder_are_nobodys_concern(open_folder: Path) -> None:
    settings = open_folder / "edged.toml"
    settings.write_text('[device]\nid = "board"\n')
    assert [*open_secrets(load(settings))] == []
    settings.write_text('[mqtt]\nusername = "board"\npassword = "x"\n')
    assert len([*open_secrets(load(settings))]) == 1
    open_folder.chmod(0o700)
    assert [*open_secrets(load(settings))] == []


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_the_boards_is_a_failure(settings: Settings, host: str) -> None:
    http = settings.http.model_copy(update={"host": host, "plain_text": True})
    is_open, found = bad(settings.model_copy(update={"http": http}), BOARDS / "pi5", "http")
    assert (is_open.state, "are open to everyone" in is_open.message) == ("warn", True)
    assert (found.state, found.hint) == ("fail", "set http.host to an address of this board, and http.port")


def test_swap_on_the_card_is_a_warning(settings: Settings) -> None:
    (found,) = bad(settings, BOARDS / "pi4", "memory")
    assert (found.state, "to /var/swap" in found.message, "swapoff /var/swap" in found.hint) == ("warn", True, True)


@pytest.mark.parametrize("board", ["pi5", "jetson-orin"])
def test_swap_in_memory_is_fine(settings: Settings, board: str) -> None:
    assert bad(settings, BOARDS / board, "memory") == []


def test_a_swap_partition_of_the_card_counts_and_one_of_a_disk_does_not(tmp_path: Path) -> None:
    root = tree(tmp_path, "jetson-orin")
    swaps = root / "proc/swaps"
    head = swaps.read_text().splitlines()[0]
    swaps.write_text(
        f"{head}\n/dev/mmcblk0p3 partition 1 0 -2\n/dev/nvme0n1p2 partition 1 0 -3\n/a\\040b file 1 0 -4\n"
    )
    assert swaps_on_card(root) == ["/dev/mmcblk0p3"]


def over(root: Path, line: str) -> Path:
    """Mount something more, over what is there."""
    with (root / "proc/self/mountinfo").open("a") as table:
        table.write(line + "\n")
    return root


def test_state_on_the_card_is_fine(settings: Settings) -> None:
    assert bad(settings, BOARDS / "pi4", "disk") == []


def test_state_in_memory_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    place = settings.state_dir.parent.resolve()
    root = over(tree(tmp_path, "pi4"), f"90 27 0:40 / {place} rw - tmpfs tmpfs rw")
    (found,) = bad(settings, root, "disk")
    assert (found.state, "lies on tmpfs" in found.message) == ("warn", True)


def test_an_overlay_over_the_card_is_a_warning(settings: Settings, tmp_path: Path) -> None:
    root = over(tree(tmp_path, "pi4"), "90 1 0:40 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b")
    (found,) = bad(settings, root, "disk")
    assert (found.state, "lies on overlay" in found.message, "raspi-config" in found.hint) == ("warn", True, True)


def test_a_card_that_the_kernel_made_read_only_is_a_fault(settings: Settings, tmp_path: Path) -> None:
    root = tree(tmp_path, "pi4")
    table = root / "proc/self/mountinfo"
    table.write_text(table.read_text().replace("/dev/mmcblk0p2 rw", "/dev/mmcblk0p2 ro"))
    (found,) = bad(settings, root, "disk")
    assert (found.state, found.message) == ("fail", "/ (/dev/mmcblk0p2) is mounted read-only")


def test_the_innermost_and_latest_mount_holds_a_folder(tmp_path: Path) -> None:
    root = over(tree(tmp_path, "pi4"), "90 27 8:1 / /data\\040disk rw - ext4 /dev/sda1 rw")
    mount = mount_of(Path("/data disk/edged"), root)
    assert mount is not None
    assert (mount.point, mount.source, mount.on_card) == (Path("/data disk"), "/dev/sda1", False)
    assert mount_of(Path("/data disk2"), root) == mount_of(Path("/"), root)
    assert mount_of(Path("/"), tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("name", "state"), [("glibc 2.36", "ok"), ("glibc 2.28", "ok"), ("glibc 2.27", "fail"), (None, "fail")]
)
def test_the_c_library_must_be_one_that_the_wheels_know(name: str | None, state: str) -> None:
    found = _c_library(name)
    assert (found.state, bool(found.hint)) == (state, state == "fail")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("board", "place", "drop_in"),
    [
        ("pi4", "dev/vcio", "raspberry-pi"),
        ("pi5", "dev/vcio", "raspberry-pi"),
        ("pc", "sys/class/powercap/intel-rapl:0/energy_uj", "rapl"),
    ],
)
def test_a_sensor_that_is_closed_to_the_service_is_named_with_what_opens_it(
    settings: Settings, tmp_path: Path, board: str, place: str, drop_in: str
) -> None:
    root = tree(tmp_path, board)
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).touch()
    assert bad(settings, root, "sensors") == []  # no service: this user may read it
    units = root / "etc/systemd/system/edged.service.d"
    units.mkdir(parents=True)
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd/system/edged.service").touch()
    (units / "other.conf").write_text("# DeviceAllow=/dev/vcio and energy_uj are closed\n[Service]\n")
    (found,) = bad(settings, root, "sensors")
    assert (found.state, f"{drop_in}.conf.example" in found.hint) == ("warn", True)
    shutil.copy(DROP_INS / f"{drop_in}.conf.example", units / f"{drop_in}.conf")
    assert bad(settings, root, "sensors") == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("drop_in", ["raspberry-pi", "rapl"])
def test_a_drop_in_for_sensors_leaves_the_service_closed(tmp_path: Path, drop_in: str) -> None:
    folder = tmp_path / "etc/systemd/system/edged.service.d"
    folder.mkdir(parents=True)
    shutil.copy(DROP_INS.with_suffix(""), folder.with_suffix(""))
    shutil.copy(DROP_INS / f"{drop_in}.conf.example", folder / f"{drop_in}.conf")
    command = ["systemd-analyze", "security", "--offline=yes", f"--root={tmp_path}", "--threshold=15", "edged.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze looks at no files")
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_throttling_is_a_warning_and_the_rails_are_named(settings: Settings, tmp_path: Path) -> None:
    root = tree(tmp_path, "jetson-orin")
    assert bad(settings, root, "sensors") == []
    (root / "sys/class/thermal/cooling_device5/cur_state").write_text("1")
    (found,) = bad(settings, root, "sensors")
    assert found.message == "throttled: gpu_throttle_alert"
    told = next(one.message for one in examine(settings, detect(root)) if one.check == "sensors")
    assert "temperature_celsius" in told
    assert told.endswith("power of VDD_IN")


@pytest.mark.parametrize(
    ("l4t", "python", "thor", "words"),
    [
        ("35.4.1", (3, 10), False, "install JetPack 6.1 or newer"),
        ("36.3.0", (3, 10), False, "is JetPack 6.0"),
        (
            "36.4.3",
            (3, 10),
            False,
            "--index-url https://pypi.jetson-ai-lab.io/jp6/cu126 'onnxruntime-gpu>=1.23'; lay the wheel",
        ),
        ("36.4.3", (3, 12), False, "--python-version 3.10"),
        ("36.4.3", (3, 12), False, "for Python 3.10, JetPack 6's own"),
        ("38.2.0", (3, 12), True, "--index-url https://pypi.jetson-ai-lab.io/sbsa/cu130 'onnxruntime-gpu>=1.23'"),
        ("38.2.0", (3, 12), True, "for sm_89, 90, 120 and 121 only: none for a Thor (sm_110)"),
        ("39.2.0", (3, 11), True, "for Python 3.12, JetPack 7's own"),
        ("39.2.0", (3, 12), False, "CMAKE_CUDA_ARCHITECTURES=87, or install JetPack 6.2"),
        (None, (3, 10), False, "/etc/nv_tegra_release"),
    ],
)
def test_the_wheel_for_a_jetson_is_named_by_its_release(
    l4t: str | None, python: tuple[int, int], thor: bool, words: str
) -> None:
    assert words in cuda_runtime(l4t, python, thor)


def test_pypis_wheel_is_named_to_no_jetson() -> None:
    """It lists CUDA, and no kernel of it runs on one."""
    for l4t in ("36.4.3", "38.2.0", "39.2.0"):
        for thor in (False, True):
            advice = cuda_runtime(l4t, (3, 12), thor)
            assert "manylinux" not in advice
            assert advice.count("pip download") == advice.count("jetson-ai-lab.io") <= 1


@pytest.mark.parametrize(("board", "words"), [("jetson-orin", "jp6/cu126"), ("jetson-thor", "sbsa/cu130")])
def test_a_jetson_on_its_cpu_is_told_which_wheel_it_needs(settings: Settings, board: str, words: str) -> None:
    (found,) = bad(settings, BOARDS / board, "runtime")
    assert words in found.hint
    assert (found.state, "GPU" in found.message, "set model.runtime_wheels" in found.hint) == ("warn", True, True)
