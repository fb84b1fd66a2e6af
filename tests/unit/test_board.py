"""Boards: what four machines say about themselves, read from folder trees of theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edged.machine.board import DeviceIdError, detect, device_id
from edged.machine.board.jetson import Jetson

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
        ("pc", "generic", "NUC12WSHi5", None),
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
        assert (board.temperatures(), board.throttled(), board.power_watts()) == ({}, {}, {})

    @on("pi4", "pi5", "jetson-orin", "pc")
    def test_files_full_of_nonsense_raise_nothing(self, tree: Path) -> None:
        board = detect(tree)
        for path in (tree / "sys").rglob("*"):
            if path.is_file():
                path.write_bytes(b"\xff\x00nonsense\n")
        assert board.temperatures() == {}
        assert not any(board.throttled().values())
        assert board.power_watts() == {}
        assert board.performance_cores()


class TestCores:
    @pytest.mark.parametrize(
        ("name", "cores"),
        [
            ("pi4", (0, 1, 2, 3)),
            ("pi5", (0, 1, 2, 3)),
            ("jetson-orin", (0, 1, 2, 3, 4, 5)),
            ("pc", (0, 2, 4, 6)),
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


class TestTemperatures:
    def test_a_zone_and_its_chip_are_one_reading(self) -> None:
        assert detect(BOARDS / "pi5").temperatures() == {"cpu-thermal": 52.35, "rp1_adc": 54.31}

    def test_a_zone_that_is_off_gives_no_value(self) -> None:
        found = detect(BOARDS / "jetson-orin").temperatures()
        assert found["tj-thermal"] == 50.5
        assert "cv0-thermal" not in found

    @on("jetson-orin")
    def test_the_reading_of_a_sensor_that_is_off_is_left_out(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/thermal_zone2/temp", "-256000\n")
        assert "cv0-thermal" not in detect(tree).temperatures()

    def test_labels_name_the_sensors_of_a_chip(self) -> None:
        found = detect(BOARDS / "pc").temperatures()
        assert found["coretemp_core_0"] == 44.0
        assert found["nvme_composite"] == 38.85

    @on("pc")
    def test_zones_of_the_same_type_keep_apart(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/thermal_zone2/type", "acpitz\n")
        write(tree, "sys/class/thermal/thermal_zone2/temp", "31000\n")
        found = detect(tree).temperatures()
        assert (found["acpitz"], found["acpitz-2"]) == (27.8, 31.0)

    @on("pi4")
    def test_values_are_read_anew_each_time(self, tree: Path) -> None:
        board = detect(tree)
        write(tree, "sys/class/thermal/thermal_zone0/temp", "85000\n")
        assert board.temperatures() == {"cpu-thermal": 85.0}


class TestThrottled:
    @pytest.mark.parametrize(
        ("word", "active"),
        [
            ("0", set()),
            ("50000", set()),  # has occurred, is over
            ("50005", {"under_voltage", "throttled"}),
            ("a", {"frequency_capped", "soft_temperature_limit"}),
        ],
    )
    @on("pi4")
    def test_the_pis_bits_tell_what_holds_now(self, tree: Path, word: str, active: set[str]) -> None:
        write(tree, "sys/devices/platform/soc/soc:firmware/get_throttled", f"{word}\n")
        found = detect(tree).throttled()
        assert {reason for reason, holds in found.items() if holds} == active
        assert len(found) == 4

    @on("pi4", "pi5")
    def test_the_voltage_driver_tells_of_under_voltage(self, tree: Path) -> None:
        write(tree, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
        assert detect(tree).throttled()["under_voltage"] is True

    def test_a_pi_5_tells_nothing_but_under_voltage(self) -> None:
        assert detect(BOARDS / "pi5").throttled() == {"under_voltage": False}

    @on("pi5")
    def test_the_firmware_node_may_carry_its_address(self, tree: Path) -> None:
        write(tree, "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "4\n")
        assert detect(tree).throttled()["throttled"] is True

    @on("jetson-orin")
    def test_a_jetsons_thermal_alert_shows_and_its_fan_does_not(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/cooling_device5/cur_state", "1\n")
        found = detect(tree).throttled()
        assert found["gpu_throttle_alert"] is True
        assert found["cpu_throttle_alert"] is False
        assert "pwm_fan" not in found

    @on("jetson-orin")
    def test_an_over_current_event_shows_for_a_minute_after_its_counter_rose(self, tree: Path) -> None:
        board = detect(tree)
        assert isinstance(board, Jetson)
        now = 0.0
        board.now = lambda: now
        before = board.throttled()["instantaneous_over_current"]
        write(tree, "sys/class/hwmon/hwmon3/oc3_event_cnt", "38\n")
        shown = []
        for now in (10.0, 69.0, 71.0):  # noqa: B007 - read by the board's clock
            shown.append(board.throttled()["instantaneous_over_current"])
        assert (before, shown) == (False, [True, True, False])
        assert board.throttled()["under_voltage"] is False

    def test_a_pc_tells_nothing(self) -> None:
        assert detect(BOARDS / "pc").throttled() == {}


class TestPower:
    def test_a_jetsons_rails_in_watts_without_the_shunts_and_their_sum(self) -> None:
        found = detect(BOARDS / "jetson-orin").power_watts()
        assert set(found) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
        assert found["VDD_IN"] == pytest.approx(4.984 * 1.856)

    @pytest.mark.parametrize("name", ["pi4", "pi5", "pc"])
    def test_other_boards_measure_nothing(self, name: str) -> None:
        assert detect(BOARDS / name).power_watts() == {}


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
