"""Boards: what machines say about themselves, read from folder trees of theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edged.machine.board import DeviceIdError, detect, device_id

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the tree named by the parameter, to change things in."""
    return Path(shutil.copytree(BOARDS / request.param, tmp_path / "root"))


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", names, indirect=True)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("name", "kind", "model", "l4t"),
    [
        ("pi4", "raspberry_pi", "Raspberry Pi 4 Model B Rev 1.4", None),
        ("pi5", "raspberry_pi", "Raspberry Pi 5 Model B Rev 1.0", None),
        (
            "jetson-orin",
            "jetson",
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "36.4.3",
        ),
        ("jetson-thor", "jetson", "NVIDIA Jetson AGX Thor Developer Kit", "38.2.0"),
        ("pc", "generic", "NUC12WSHi5", None),
        ("rk3588", "generic", "Radxa ROCK 5B", None),
    ],
)
def test_each_board_is_recognised(name: str, kind: str, model: str, l4t: str | None) -> None:
    board = detect(BOARDS / name)
    assert (board.kind, board.model, board.l4t) == (kind, model, l4t)


@on("jetson-orin")
def test_a_jetson_is_recognised_in_a_container_that_has_only_its_device_tree(tree: Path) -> None:
    (tree / "etc/nv_tegra_release").unlink()
    board = detect(tree)
    assert (board.kind, board.l4t) == ("jetson", None)


@on("jetson-orin")
def test_a_jetson_on_a_foreign_carrier_board_is_recognised_by_its_release_file(tree: Path) -> None:
    shutil.rmtree(tree / "proc/device-tree")
    assert detect(tree).kind == "jetson"


@on("pc")
def test_a_name_that_no_one_filled_in_gives_way_to_the_processors(tree: Path) -> None:
    write(tree, "sys/class/dmi/id/product_name", "To Be Filled By O.E.M.\n")
    assert detect(tree).model == "12th Gen Intel(R) Core(TM) i5-1240P"


class TestNothingReadable:
    def test_an_empty_root_is_a_generic_board_without_readings(self, tmp_path: Path) -> None:
        board = detect(tmp_path)
        assert (board.kind, board.model, board.serial, board.cores) == ("generic", "unknown", None, (0,))
        assert board.performance_cores() == (0,)

    @on("pi4", "pi5", "jetson-orin", "pc")
    def test_files_full_of_nonsense_raise_nothing(self, tree: Path) -> None:
        board = detect(tree)
        for path in (tree / "sys").rglob("*"):
            if path.is_file():
                path.write_bytes(b"\xff\x00nonsense\n")
        assert board.performance_cores()


class TestCores:
    @pytest.mark.parametrize(
        ("name", "cores"),
        [
            ("pi4", (0, 1, 2, 3)),
            ("pi5", (0, 1, 2, 3)),
            ("jetson-orin", (0, 1, 2, 3, 4, 5)),
            ("jetson-thor", tuple(range(14))),
            ("pc", (0, 2, 4, 6)),
            ("rk3588", (4, 5, 6, 7)),
        ],
    )
    def test_one_thread_of_each_fast_core(self, name: str, cores: tuple[int, ...]) -> None:
        assert detect(BOARDS / name).performance_cores() == cores

    def test_a_core_whose_first_thread_is_not_allowed_counts_by_its_second(self) -> None:
        assert detect(BOARDS / "pc").performance_cores({1, 4, 5, 12}) == (1, 4)

    def test_slow_cores_count_where_no_fast_one_is_allowed(self) -> None:
        assert detect(BOARDS / "pc").performance_cores({8, 9}) == (8, 9)

    @on("pc")
    def test_turbo_bins_of_a_few_per_cent_are_one_class(self, tree: Path) -> None:
        write(tree, "sys/devices/system/cpu/cpu2/cpufreq/cpuinfo_max_freq", "4600000\n")
        assert detect(tree).performance_cores() == (0, 2, 4, 6)

    @on("jetson-orin")
    def test_capacity_outweighs_frequency(self, tree: Path) -> None:
        for cpu in (0, 1, 2, 3):
            write(tree, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "400\n")
        assert detect(tree).performance_cores() == (4, 5)

    @on("pi4")
    def test_without_capacity_and_frequency_every_core_counts(self, tree: Path) -> None:
        for path in [*tree.rglob("cpu_capacity"), *tree.rglob("cpuinfo_max_freq")]:
            path.unlink()
        assert detect(tree).performance_cores() == (0, 1, 2, 3)

    @on("pi4")
    def test_a_core_that_is_offline_does_not_count(self, tree: Path) -> None:
        write(tree, "sys/devices/system/cpu/online", "0,2-3\n")
        assert detect(tree).performance_cores() == (0, 2, 3)

    @pytest.mark.parametrize(
        ("quota", "number"),
        [("max 100000", 4), ("150000 100000", 2), ("200000 100000", 2), ("1000 100000", 1)],
    )
    @on("pi4")
    def test_a_cpu_quota_rounded_up_caps_the_number(self, tree: Path, quota: str, number: int) -> None:
        write(tree, "sys/fs/cgroup/system.slice/edged.service/cpu.max", quota)
        assert len(detect(tree).performance_cores()) == number

    @on("pi4")
    def test_the_quota_of_a_group_above_counts_too(self, tree: Path) -> None:
        write(tree, "sys/fs/cgroup/system.slice/cpu.max", "100000 100000")
        assert len(detect(tree).performance_cores()) == 1


class TestProcessor:
    def test_processors_are_told_apart(self) -> None:
        boards = ("pi4", "pi5", "jetson-orin", "pc")
        assert len({detect(BOARDS / board).processor() for board in boards}) == len(boards)

    @on("pc")
    def test_what_changes_while_one_runs_plays_no_part(self, tree: Path) -> None:
        before = detect(tree).processor()
        cpuinfo = (tree / "proc/cpuinfo").read_text()
        write(tree, "proc/cpuinfo", cpuinfo.replace("model name", "cpu MHz\t\t: 1700.000\nmodel name"))
        assert detect(tree).processor() == before

    @on("pc")
    @pytest.mark.parametrize("line", ["flags\t\t: sse2 avx512_vnni", "stepping\t: 4"])
    def test_other_instructions_or_another_stepping_are_another_one(self, tree: Path, line: str) -> None:
        before = detect(tree).processor()
        write(tree, "proc/cpuinfo", (tree / "proc/cpuinfo").read_text() + f"\n{line}\n")
        assert detect(tree).processor() != before

    @on("pc")
    def test_so_are_larger_caches(self, tree: Path) -> None:
        cache = "sys/devices/system/cpu/cpu0/cache/index2"
        for name, text in (("level", "2\n"), ("type", "Unified\n"), ("size", "512K\n")):
            write(tree, f"{cache}/{name}", text)
        before = detect(tree).processor()
        write(tree, f"{cache}/size", "1024K\n")
        assert detect(tree).processor() != before


class TestDeviceId:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("pi4", "10000000a1b2c3d4"), ("pi5", "5e6f708192a3b4c5"), ("jetson-orin", "1420000012345")],
    )
    def test_it_is_the_serial_number(self, name: str, expected: str) -> None:
        assert device_id(detect(BOARDS / name), BOARDS / name) == expected

    @on("pi4")
    def test_the_serial_number_may_stand_in_cpuinfo_alone(self, tree: Path) -> None:
        (tree / "proc/device-tree/serial-number").unlink()
        assert device_id(detect(tree), tree) == "10000000a1b2c3d4"

    @on("pi4")
    def test_what_a_topic_cannot_hold_is_left_out_of_it(self, tree: Path) -> None:
        write(tree, "proc/device-tree/serial-number", "A/1#" + "b" * 100 + "\0")
        assert device_id(detect(tree), tree) == "A1" + "b" * 62

    def test_without_one_it_is_a_hash_of_machine_id_and_not_machine_id_itself(self) -> None:
        found = device_id(detect(BOARDS / "pc"), BOARDS / "pc")
        # printf %s edged77777777777777777777777777777777 | sha256sum | cut -c-16
        assert found == "edged-af00ac9eed503483"

    @on("pi4")
    def test_a_serial_number_of_zeros_is_none(self, tree: Path) -> None:
        write(tree, "proc/device-tree/serial-number", "0000000000000000\0")
        write(tree, "proc/cpuinfo", "Serial\t\t: 0000000000000000\n")
        assert device_id(detect(tree), tree).startswith("edged-")

    @pytest.mark.parametrize("machine", [None, "", "uninitialized\n"])
    @on("pc")
    def test_with_neither_it_says_what_to_set(self, tree: Path, machine: str | None) -> None:
        (tree / "etc/machine-id").unlink()
        if machine is not None:
            write(tree, "etc/machine-id", machine)
        with pytest.raises(DeviceIdError, match=r"set device\.id"):
            device_id(detect(tree), tree)
