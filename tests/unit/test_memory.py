"""Memory: the limits that count, and a plan whose advice always fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.machine.memory import MIB, Available, MemoryPlanError, available, plan_memory

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"
GIB = 1024 * MIB
SERVICE = "sys/fs/cgroup/system.slice/edged.service"


@pytest.fixture
def pc(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BOARDS / "pc", tmp_path / "root"))


def write(root: Path, path: str, text: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(f"{text}\n")


class TestAvailable:
    @pytest.mark.parametrize(("name", "kib"), [("pi4", 3208344), ("pi5", 6126208), ("jetson-orin", 6012444)])
    def test_without_limits_it_is_what_the_kernel_says(self, name: str, kib: int) -> None:
        assert available(BOARDS / name) == Available(kib * 1024, "memory")

    @pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
    def test_a_cgroups_limit_counts_less_what_is_held(self, pc: Path, limit: str) -> None:
        write(pc, f"{SERVICE}/{limit}", GIB)
        write(pc, f"{SERVICE}/memory.current", 300 * MIB)
        assert available(pc) == Available(724 * MIB, "cgroup /system.slice/edged.service")

    def test_page_cache_that_can_be_dropped_is_not_held(self, pc: Path) -> None:
        write(pc, f"{SERVICE}/memory.max", GIB)
        write(pc, f"{SERVICE}/memory.current", 900 * MIB)
        write(pc, f"{SERVICE}/memory.stat", f"anon 1\nactive_file 2\ninactive_file {800 * MIB}")
        assert available(pc).bytes == 924 * MIB

    def test_the_tightest_group_above_sets_the_limit(self, pc: Path) -> None:
        write(pc, f"{SERVICE}/memory.max", 2 * GIB)
        write(pc, "sys/fs/cgroup/system.slice/memory.max", GIB)
        write(pc, "sys/fs/cgroup/system.slice/memory.current", 400 * MIB)
        assert available(pc) == Available(624 * MIB, "cgroup /system.slice")

    def test_a_containers_own_limit_at_the_mount_counts(self, pc: Path) -> None:
        write(pc, "proc/self/cgroup", "0::/")
        write(pc, "sys/fs/cgroup/memory.max", GIB)
        write(pc, "sys/fs/cgroup/memory.current", 0)
        assert available(pc) == Available(GIB, "cgroup /")

    def test_a_group_outside_of_the_namespace_is_not_looked_for(self, pc: Path) -> None:
        write(pc, "proc/self/cgroup", "0::/../../other")
        write(pc, "sys/fs/cgroup/memory.max", GIB)
        write(pc, "sys/fs/cgroup/memory.current", 0)
        assert available(pc) == Available(GIB, "cgroup /")

    def test_a_limit_that_is_overrun_leaves_nothing(self, pc: Path) -> None:
        write(pc, f"{SERVICE}/memory.max", MIB)
        write(pc, f"{SERVICE}/memory.current", 2 * MIB)
        assert available(pc).bytes == 0

    def test_version_1_limits_count_too(self, pc: Path) -> None:
        (pc / "sys/fs/cgroup/cgroup.controllers").unlink()
        write(pc, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc")
        write(pc, "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
        write(pc, "sys/fs/cgroup/memory/memory.usage_in_bytes", GIB)
        write(pc, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", GIB)
        write(pc, "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", 500 * MIB)
        write(pc, "sys/fs/cgroup/memory/docker/abc/memory.stat", f"total_inactive_file {100 * MIB}")
        assert available(pc) == Available(624 * MIB, "cgroup /docker/abc")

    def test_a_kernel_that_does_not_say_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(MemoryPlanError, match="MemAvailable"):
            available(tmp_path)


class TestPlan:
    def test_the_peak_is_the_sum_of_all_parts(self) -> None:
        room = Available(8 * GIB, "memory")
        assert plan_memory(GIB, MIB, 2, 1024, MIB, room).peak == 3 * GIB + MIB

    def test_64_mib_and_2_per_cent_are_left_free(self) -> None:
        room = Available(1000 * MIB, "memory")
        assert plan_memory(916 * MIB, 0, 1, 64, 0, room).peak == 916 * MIB
        with pytest.raises(MemoryPlanError):
            plan_memory(916 * MIB + 1, 0, 1, 64, 0, room)

    def test_too_long_a_context_names_the_figures_and_the_context_that_fits(self) -> None:
        with pytest.raises(MemoryPlanError) as caught:
            plan_memory(2 * GIB, 786_432, 1, 4096, 100 * MIB, Available(4 * GIB, "GPU 0", on_gpu=True))
        assert str(caught.value) == (
            "the model needs 5.10 GiB (weights 2.00 GiB, cache 3.00 GiB for 1 x 4096 tokens, "
            "working 100 MiB) and 3.86 GiB are usable of 4.00 GiB available (limited by GPU 0): "
            "model.context = 2402 would fit"
        )

    def test_too_many_rows_are_fewer_rows_once_the_context_would_be_useless(self) -> None:
        with pytest.raises(MemoryPlanError, match=r": model\.rows = 2 with model\.context = 75 would fit$"):
            plan_memory(0, MIB, 8, 4096, 0, Available(220 * MIB, "memory"))

    def test_rows_alone_are_proposed_where_the_context_is_already_small(self) -> None:
        with pytest.raises(MemoryPlanError, match=r": model\.rows = 9 would fit$"):
            plan_memory(0, MIB, 12, 16, 0, Available(220 * MIB, "memory"))

    @pytest.mark.parametrize(("weights", "working"), [(GIB, 0), (100 * MIB, GIB)])
    def test_what_no_setting_makes_fit_is_said_so(self, weights: int, working: int) -> None:
        with pytest.raises(MemoryPlanError, match=r"this package does not fit on this board$") as caught:
            plan_memory(weights, 1024, 4, 4096, working, Available(512 * MIB, "cgroup /edged"))
        assert (caught.value.rows, caught.value.context) == (None, None)
        assert "limited by cgroup /edged" in str(caught.value)
        assert "\n" not in str(caught.value)

    @given(
        weights=st.integers(0, 4 * GIB),
        per_token=st.integers(0, 2 * MIB),
        rows=st.integers(1, 64),
        context=st.integers(16, 131_072),
        working=st.integers(0, GIB),
        free=st.integers(0, 16 * GIB),
    )
    def test_the_setting_proposed_fits_and_one_step_more_does_not(
        self, weights: int, per_token: int, rows: int, context: int, working: int, free: int
    ) -> None:
        room = Available(free, "memory")

        def fits(some_rows: int, some_context: int) -> bool:
            try:
                planned = plan_memory(weights, per_token, some_rows, some_context, working, room)
            except MemoryPlanError:
                return False
            assert planned.peak <= room.usable
            return True

        proposed = None
        try:
            plan_memory(weights, per_token, rows, context, working, room)
        except MemoryPlanError as error:
            proposed = (error.rows, error.context)
        if proposed is None:
            return
        floor = min(64, context)
        fewer, longest = proposed
        if fewer is None or longest is None:
            assert not fits(1, floor)
            return
        assert proposed != (rows, context)
        assert 1 <= fewer <= rows
        assert floor <= longest <= context
        assert fits(fewer, longest)
        assert longest == context or not fits(fewer, longest + 1)
        assert fewer == rows or not fits(fewer + 1, floor)

    @pytest.mark.parametrize(
        ("free", "rows", "prefixes"),
        [
            # 8 GB, Phi-3 mini: a second row of 3 GiB has no room.
            (8 * GIB, 1, 990),
            (16 * GIB, 3, 1999),
            (64 * GIB, 8, 8020),
            (6400 * MIB, 1, 0),
        ],
    )
    def test_rows_and_prefixes_that_nobody_set_take_what_is_left(self, free: int, rows: int, prefixes: int) -> None:
        room = Available(free, "memory")
        planned = plan_memory(3 * GIB, 786_432, None, 4096, 0, room, prefixes=None)
        assert planned.rows == rows
        assert planned.prefixes // MIB in range(prefixes, prefixes + 120)
        assert planned.peak <= room.usable

    def test_prefixes_that_are_set_count_and_are_told_where_they_do_not_fit(self) -> None:
        room = Available(4 * GIB, "memory")
        assert plan_memory(GIB, MIB, 1, 64, 0, room, prefixes=GIB).prefixes == GIB
        with pytest.raises(MemoryPlanError, match=r"prefixes 3\.00 GiB.*: cache\.ram_bytes = 0 might help$"):
            plan_memory(GIB, MIB, 1, 64, 0, room, prefixes=3 * GIB)

    @given(limit=st.integers(0, 1 << 45))
    def test_what_is_usable_is_never_negative_nor_more_than_what_is_available(self, limit: int) -> None:
        assert 0 <= Available(limit, "memory").usable <= limit
