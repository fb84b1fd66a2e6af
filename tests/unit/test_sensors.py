"""Sensors: what each board tells, read from folder trees as they are documented, and what broken ones cost."""

from __future__ import annotations

import inspect
import math
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from edged.machine.board import detect
from edged.machine.sensors import facts, find_sensors, jetson, linux, power_meter, raspberry_pi, vcio
from edged.machine.sensors import quantities as q
from edged.machine.sensors.linux import event_sensors
from edged.machine.sensors.power import RaplMeter
from edged.machine.sensors.quantities import QUANTITIES, Quantity, Sensor
from edged.machine.sensors.readings import read_once

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
ALL = ("pi4", "pi5", "jetson-orin", "jetson-thor", "pc", "rk3588")


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the tree named by the parameter, to change things in."""
    return Path(shutil.copytree(BOARDS / request.param, tmp_path / "root"))


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", names, indirect=True)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def firmware(root: Path) -> Callable[[str], str]:
    """Answers of a board's firmware, which only a board has."""
    return lambda command: (root / "vcgencmd" / command).read_text().rstrip()


def sensors(root: Path) -> list[Sensor]:
    return find_sensors(detect(root), root, firmware(root))


def values(root: Path, quantity: Quantity) -> dict[str, float]:
    """The values of a quantity by their labels, joined."""
    return {" ".join(labels): value for labels, value in read_once(sensors(root), quantity).items()}


def active(root: Path, quantity: Quantity = q.THROTTLED) -> set[str]:
    return {reason for reason, holds in values(root, quantity).items() if holds}


class TestTemperatures:
    def test_a_zone_and_its_chip_are_one_reading(self) -> None:
        assert values(BOARDS / "pi5", q.TEMPERATURE) == pytest.approx({"cpu-thermal": 52.35, "rp1_adc": 54.31})

    def test_a_zone_that_is_off_gives_no_value(self) -> None:
        found = values(BOARDS / "jetson-orin", q.TEMPERATURE)
        assert found["tj-thermal"] == 50.5
        assert "cv0-thermal" not in found

    def test_the_zones_of_a_thor_and_of_an_rk3588(self) -> None:
        thor = values(BOARDS / "jetson-thor", q.TEMPERATURE)
        assert set(thor) == {"tj-thermal", "soc012-thermal", "cpu-thermal", "soc345-thermal"}  # its GPU is off
        rockchip = values(BOARDS / "rk3588", q.TEMPERATURE)
        assert (len(rockchip), rockchip["bigcore0-thermal"]) == (7, pytest.approx(45.3))

    @on("jetson-orin")
    def test_the_reading_of_a_sensor_that_is_off_is_left_out(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/thermal_zone2/temp", "-256000\n")
        assert "cv0-thermal" not in values(tree, q.TEMPERATURE)

    def test_labels_name_the_sensors_of_a_chip(self) -> None:
        found = values(BOARDS / "pc", q.TEMPERATURE)
        assert (found["coretemp_core_0"], found["nvme_composite"]) == (44.0, 38.85)

    @on("pc")
    def test_zones_of_the_same_type_keep_apart(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/thermal_zone2/type", "acpitz\n")
        write(tree, "sys/class/thermal/thermal_zone2/temp", "31000\n")
        found = values(tree, q.TEMPERATURE)
        assert (found["acpitz"], found["acpitz-2"]) == (27.8, 31.0)


class TestThrottled:
    @pytest.mark.parametrize(
        ("word", "now", "since_boot"),
        [
            ("0x0", set(), set()),
            ("0x50000", set(), {"under_voltage", "throttled"}),
            ("0x50005", {"under_voltage", "throttled"}, {"under_voltage", "throttled"}),
            ("0xa", {"frequency_capped", "soft_temperature_limit"}, set()),
        ],
    )
    @on("pi4", "pi5")
    def test_the_bits_of_a_pis_firmware(self, tree: Path, word: str, now: set[str], since_boot: set[str]) -> None:
        write(tree, "vcgencmd/get_throttled", f"throttled={word}\n")
        assert (active(tree), active(tree, q.THROTTLED_SINCE_BOOT)) == (now, since_boot)
        assert len(values(tree, q.THROTTLED)) == 4

    @on("pi4")
    def test_without_the_mailbox_the_kernels_file_tells_the_same(self, tree: Path) -> None:
        shutil.rmtree(tree / "vcgencmd")
        write(tree, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
        assert active(tree) == active(tree, q.THROTTLED_SINCE_BOOT) == {"under_voltage", "throttled"}

    @on("pi5")
    def test_the_firmware_node_may_carry_its_address(self, tree: Path) -> None:
        shutil.rmtree(tree / "vcgencmd")
        write(tree, "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "4\n")
        assert active(tree) == {"throttled"}

    @on("pi4", "pi5")
    def test_the_voltage_driver_tells_of_under_voltage(self, tree: Path) -> None:
        write(tree, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
        assert active(tree) == {"under_voltage"}

    @on("pi5")
    def test_a_pi_5_without_its_mailbox_tells_nothing_but_under_voltage(self, tree: Path) -> None:
        shutil.rmtree(tree / "vcgencmd")
        assert values(tree, q.THROTTLED) == {"under_voltage": 0.0}
        assert values(tree, q.THROTTLED_SINCE_BOOT) == {}

    @on("jetson-orin")
    def test_a_jetsons_thermal_alert_shows_and_its_fan_does_not(self, tree: Path) -> None:
        write(tree, "sys/class/thermal/cooling_device5/cur_state", "1\n")
        found = values(tree, q.THROTTLED)
        assert (found["gpu_throttle_alert"], found["cpu_throttle_alert"]) == (1, 0)
        assert "pwm_fan" not in found

    @on("jetson-orin", "rk3588")
    def test_cooling_by_a_lower_frequency_shows(self, tree: Path) -> None:
        assert values(tree, q.THROTTLED)["cpu_cooling"] == 0
        write(tree, "sys/class/thermal/cooling_device1/cur_state", "2\n")
        assert active(tree) == {"cpu_cooling"}

    def test_over_current_events_are_counted_since_boot(self) -> None:
        found = values(BOARDS / "jetson-orin", q.THROTTLED_SINCE_BOOT)
        assert found == {"under_voltage": 0, "average_over_current": 1, "instantaneous_over_current": 1}
        assert active(BOARDS / "jetson-orin") == set()

    def test_a_pc_counts_when_its_processor_was_too_hot(self) -> None:
        assert values(BOARDS / "pc", q.THROTTLED) == {"package_too_hot": 0}
        assert values(BOARDS / "pc", q.THROTTLED_SINCE_BOOT) == {"package_too_hot": 1}

    def test_an_event_shows_for_a_minute_after_its_counter_rose(self, tmp_path: Path) -> None:
        now, counter = 0.0, tmp_path / "oc3_event_cnt"
        counter.write_text("37\n")
        recent, since_boot = event_sensors("over_current", counter, lambda: now)
        before = recent.read()["over_current",]
        counter.write_text("38\n")
        shown = []
        for now in (10.0, 69.0, 71.0):  # noqa: B007 - read by the sensor's clock
            shown.append(recent.read()["over_current",])
        assert (before, shown) == (0, [1, 1, 0])
        assert since_boot.read() == {("over_current",): 1}


class TestPower:
    def test_a_pi_5s_rails_and_their_total_with_the_published_correction(self) -> None:
        power = power_meter(detect(BOARDS / "pi5"), firmware(BOARDS / "pi5")).read()
        assert len(power.rails) == 12
        assert power.rails["VDD_CORE"] == pytest.approx(2.87674 * 0.8974594)
        assert (power.total, power.source) == (pytest.approx(sum(power.rails.values()) * 1.1451 + 0.5879), "pmic")

    @on("pi5")
    def test_a_rail_that_lies_is_left_out_and_leaves_no_total(self, tree: Path) -> None:
        path = tree / "vcgencmd/pmic_read_adc"
        path.write_text(path.read_text().replace("current(7)=2.87674000A", "current(7)=nanA"))
        power = power_meter(detect(tree), firmware(tree)).read()
        assert (len(power.rails), power.total) == (11, None)

    def test_a_jetsons_rails_in_watts_without_the_shunts_and_their_sum(self) -> None:
        power = power_meter(detect(BOARDS / "jetson-orin")).read()
        assert set(power.rails) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}
        assert (power.total, power.source) == (pytest.approx(4.984 * 1.856), "VDD_IN")

    def test_a_thors_input_is_measured_by_a_chip_of_its_own(self) -> None:
        power = power_meter(detect(BOARDS / "jetson-thor")).read()
        assert set(power.rails) == {"VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}
        assert (power.total, power.source) == (pytest.approx(23.021568), "VIN")

    @on("jetson-thor")
    def test_without_that_chip_the_modules_rails_are_added(self, tree: Path) -> None:
        shutil.rmtree(tree / "sys/class/hwmon/hwmon3")
        power = power_meter(detect(tree)).read()
        assert power.total == pytest.approx(sum(power.rails.values()))
        assert power.source == "VDD_CPU_SOC_MSS+VDD_GPU+VIN_SYS_5V0"

    @on("jetson-orin")
    def test_an_agx_orins_total_leaves_out_what_hangs_at_its_5_volts(self, tree: Path) -> None:
        chip = "sys/class/hwmon/hwmon1"
        for channel, name in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1):
            write(tree, f"{chip}/in{channel}_label", name)
        for path, text in (("name", "ina3221"), ("in2_label", "VDDQ_VDD2_1V8AO")):
            write(tree, f"sys/class/hwmon/hwmon9/{path}", text)
        write(tree, "sys/class/hwmon/hwmon9/in2_input", "5000")
        write(tree, "sys/class/hwmon/hwmon9/curr2_input", "200")
        power = power_meter(detect(tree)).read()
        assert power.rails["VDDQ_VDD2_1V8AO"] == pytest.approx(1.0)
        assert power.total == pytest.approx(sum(power.rails.values()) - 1.0)

    @pytest.mark.parametrize("name", ["pi4", "rk3588"])
    def test_other_boards_measure_nothing(self, name: str) -> None:
        power = power_meter(detect(BOARDS / name), firmware(BOARDS / name)).read()
        assert (power.rails, power.total) == ({}, None)


class TestRapl:
    """Counters of energy: a reading is the mean since the one before."""

    @pytest.fixture
    def meter(self, tree: Path) -> RaplMeter:
        self.at = 0.0
        return RaplMeter(tree, lambda: self.at)

    def joules(self, tree: Path, zone: int, microjoules: int) -> None:
        write(tree, f"sys/class/powercap/intel-rapl:{zone}/energy_uj", f"{microjoules}\n")

    @on("pc")
    def test_the_mean_since_the_last_reading_of_the_packages(self, tree: Path, meter: RaplMeter) -> None:
        assert meter.read().total is None
        self.at = 2.0
        self.joules(tree, 0, 262_143_000_000 + 30_000)
        power = meter.read()
        assert power.rails == {"package-0": pytest.approx(0.015)}
        assert (power.total, power.source) == (pytest.approx(0.015), "package-0")
        assert power.mean

    @on("pc")
    def test_a_counter_that_began_anew(self, tree: Path, meter: RaplMeter) -> None:
        meter.read()
        self.at = 1.0
        self.joules(tree, 0, 10_000_000)
        assert meter.read().total == pytest.approx(10.0 + 0.32885)

    @on("pc")
    def test_the_whole_platform_goes_before_its_processors(self, tree: Path, meter: RaplMeter) -> None:
        write(tree, "sys/class/powercap/intel-rapl:1/name", "psys")
        self.joules(tree, 1, 5_000_000)
        meter.read()
        self.at = 1.0
        self.joules(tree, 1, 17_000_000)
        assert (meter.read().total, meter.read().source) == (12.0, "")

    @on("pc")
    def test_two_processors_are_added_and_one_that_lies_leaves_no_total(self, tree: Path, meter: RaplMeter) -> None:
        write(tree, "sys/class/powercap/intel-rapl:1/name", "package-1")
        self.joules(tree, 1, 0)
        meter.read()
        self.at = 1.0
        self.joules(tree, 0, 262_145_000_000)
        self.joules(tree, 1, 3_000_000)
        assert (meter.read().total, meter.unreadable()) == (pytest.approx(5.0), False)
        self.joules(tree, 1, -1)
        self.at = 2.0
        assert meter.read().total is None


class TestRest:
    """CPU frequency, memory, pressure, disk, fan, GPU and what has names."""

    def test_frequencies_by_the_first_core_of_each_clock(self) -> None:
        assert values(BOARDS / "rk3588", q.CPU_FREQUENCY) == {"0": 1.008e9, "4": 4.08e8, "6": 4.08e8}
        assert values(BOARDS / "rk3588", q.CPU_FREQUENCY_MAX)["4"] == 2.4e9

    def test_memory_with_what_the_gpu_holds_of_it(self) -> None:
        orin = values(BOARDS / "jetson-orin", q.MEMORY)
        assert (orin["gpu"], orin["total"]) == (811204 << 10, 7802536 << 10)
        assert values(BOARDS / "pi4", q.MEMORY)["gpu"] == (524288 - 516260) << 10
        assert "gpu" not in values(BOARDS / "pc", q.MEMORY)

    def test_pressure_where_the_kernel_counts_it(self) -> None:
        found = values(BOARDS / "jetson-orin", q.PRESSURE)
        assert (found["cpu some"], found["memory full"]) == (pytest.approx(0.012), 0.0)
        assert values(BOARDS / "jetson-orin", q.STALLED)["cpu some"] == pytest.approx(2.160301)
        assert values(BOARDS / "pi5", q.PRESSURE) == {}  # Raspberry Pi OS has it switched off

    def test_the_disk_of_the_state_folder(self) -> None:
        size, free = (values(BOARDS / "pi5", quantity)[""] for quantity in (q.DISK_SIZE, q.DISK_FREE))
        assert size >= free > 0

    @pytest.mark.parametrize(("info", "used"), [("0x01", 0.0), ("0x02", 0.8), ("0x03", 0.9)])
    @on("rk3588")
    def test_the_wear_of_an_emmc(self, tree: Path, info: str, used: float) -> None:
        write(tree, "sys/block/mmcblk0/device/pre_eol_info", info)
        assert values(tree, q.DISK_WEAR) == pytest.approx({"a": 0.1, "b": 0.3})
        assert values(tree, q.DISK_RESERVE) == {"": used}

    @pytest.mark.parametrize("name", ["pi4", "jetson-orin"])
    def test_sd_cards_and_nvme_tell_nothing_of_wear(self, name: str) -> None:
        assert values(BOARDS / name, q.DISK_WEAR) == {}

    def test_fans(self) -> None:
        assert values(BOARDS / "pi5", q.FAN_SPEED) == {"pwmfan": 2898}
        assert values(BOARDS / "jetson-thor", q.FAN_SPEED) == {"pwm_tach": 1786}
        assert values(BOARDS / "jetson-thor", q.FAN_DUTY) == {"pwmfan": pytest.approx(58 / 255)}

    @pytest.mark.parametrize(
        ("name", "hertz", "load"), [("jetson-orin", 3.06e8, 0.345), ("jetson-thor", 1.575e9, None)]
    )
    def test_the_gpu_of_a_jetson(self, name: str, hertz: float, load: float | None) -> None:
        assert values(BOARDS / name, q.GPU_FREQUENCY) == {"": hertz}
        assert values(BOARDS / name, q.GPU_LOAD) == ({} if load is None else {"": pytest.approx(load)})

    def test_uptime_and_clock(self) -> None:
        assert values(BOARDS / "pi5", q.UPTIME) == {"": 3605.2}
        assert values(BOARDS / "pi5", q.CLOCK)[""] in (0, 1)

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("pi4", {"reset_reason": "power_on"}),
            ("pi5", {"reset_reason": "reset"}),
            ("jetson-orin", {"power_mode": "MAXN_SUPER", "reset_reason": "MAINSWRST"}),
            ("jetson-thor", {"power_mode": "120W"}),
            ("pc", {"reset_reason": "watchdog"}),
            ("rk3588", {}),
        ],
    )
    def test_power_mode_and_reset_reason(self, name: str, found: dict[str, str]) -> None:
        assert facts(detect(BOARDS / name), firmware(BOARDS / name)) == found


def test_the_docs_table_of_boards_says_what_each_of_them_tells() -> None:
    page = (Path(__file__).parents[2] / "docs/boards.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {name: row[1:] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert set(told) == {quantity.name for quantity in QUANTITIES}
    for quantity in QUANTITIES:
        for board, cell in zip(
            ("pi4", "pi5", "jetson-orin", "jetson-thor", "pc", "rk3588"), told[quantity.name], strict=True
        ):
            root = BOARDS / board
            if quantity is q.POWER:  # a PC's is a counter, which a second reading is needed for
                found = board == "pc" or bool(power_meter(detect(root), firmware(root)).read().rails)
            else:
                found = bool(values(root, quantity))
            assert found == bool(cell) or cell in "cd", (quantity.name, board)


@pytest.mark.parametrize("module", [linux, raspberry_pi, jetson])
def test_the_docs_have_the_sources_of_every_quantity(module: ModuleType) -> None:
    page = (Path(__file__).parents[2] / "docs/boards.md").read_text(encoding="utf-8")
    assert inspect.getdoc(module) in page


class TestBroken:
    """A sensor that is missing or lies costs its own value."""

    @pytest.mark.parametrize("lie", ["nan", "-1", "n/a", "", "999999999999999999999", "\ufffd"])
    @on("jetson-orin")
    def test_a_lie_costs_its_own_value(self, tree: Path, lie: str) -> None:
        before = {quantity: values(tree, quantity) for quantity in QUANTITIES}
        write(tree, "sys/class/thermal/thermal_zone1/temp", lie)
        write(tree, "sys/class/hwmon/hwmon1/curr3_input", lie)
        after = {quantity: values(tree, quantity) for quantity in QUANTITIES}
        assert before[q.TEMPERATURE].keys() - after[q.TEMPERATURE].keys() == {"gpu-thermal"}
        moving = (q.TEMPERATURE, q.UPTIME, q.DISK_FREE, q.DISK_SIZE)
        assert {key: after[key] for key in after if key not in moving} == {
            key: before[key] for key in before if key not in moving
        }
        assert set(power_meter(detect(tree)).read().rails) == {"VDD_IN", "VDD_CPU_GPU_CV"}

    @on(*ALL)
    def test_files_full_of_nonsense_raise_nothing_and_say_nothing(self, tree: Path) -> None:
        for path in [*tree.rglob("*")]:
            if path.is_file() and "device-tree" not in str(path) and path.name not in ("type", "name", "mountinfo"):
                path.write_bytes(b"\xff\x00nonsense\n")
        for quantity in QUANTITIES:
            found = values(tree, quantity)
            assert quantity in (q.DISK_SIZE, q.DISK_FREE, q.CLOCK) or not any(found.values()), quantity
        assert power_meter(detect(tree), firmware(tree)).read().rails == {}
        assert "power_mode" not in facts(detect(tree), firmware(tree))

    def test_an_empty_root_tells_nothing(self, tmp_path: Path) -> None:
        assert {sensor.quantity for sensor in find_sensors(detect(tmp_path), tmp_path)} == {
            *(q.MEMORY, q.DISK_SIZE, q.DISK_FREE, q.UPTIME, q.CLOCK)
        }
        assert values(tmp_path, q.UPTIME) == values(tmp_path, q.MEMORY) == {}

    @pytest.mark.parametrize("value", [math.nan, math.inf, -300.0, 201.0])
    def test_values_that_cannot_be_true(self, value: float) -> None:
        assert not q.TEMPERATURE.plausible(value)


class TestMailbox:
    """The message that a Raspberry Pi's firmware gets: 6 words, 1,024 bytes of text, an end tag."""

    def test_a_command_and_its_answer(self) -> None:
        message = vcio.request("get_throttled")
        assert struct.unpack_from("=6I", message) == (6 * 4 + 1024 + 4, 0, 0x00030080, 1024, 0, 0)
        assert message[24:38] == b"get_throttled\0"
        message[24:24] = b""
        message[24:38] = b"throttled=0x0\0"
        assert vcio.answer(message) == "throttled=0x0"

    def test_a_refusal_is_an_error(self) -> None:
        message = vcio.request("pmic_read_adc")
        message[24:64] = b'error=1 error_msg="Command not known"'.ljust(40, b"\0")
        with pytest.raises(OSError, match="Command not known"):
            vcio.answer(message)

    def test_a_command_without_end_is_refused_and_no_device_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="too long"):
            vcio.request("x" * 1024)
        with pytest.raises(FileNotFoundError):
            vcio.gencmd(tmp_path)("get_throttled")
        write(tmp_path, "dev/vcio", "a file, which takes no ioctl")
        with pytest.raises(OSError, match="ioctl"):
            vcio.gencmd(tmp_path)("get_throttled")
