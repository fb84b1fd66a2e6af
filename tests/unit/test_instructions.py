"""What the processor must have, by the /proc/cpuinfo of boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import cli
from edged.machine import instructions

BOARDS = Path(__file__).parents[1] / "fixtures" / "boards"


def cpuinfo(root: Path, line: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    return root


@pytest.mark.parametrize("board", ["pi4", "pi5", "jetson-orin"])
def test_boards_that_are_served_have_what_is_needed(board: str) -> None:
    assert instructions.features(BOARDS / board, "aarch64")
    assert instructions.missing(BOARDS / board, "aarch64") == []


def test_what_a_core_2_lacks_is_named(tmp_path: Path) -> None:
    root = cpuinfo(tmp_path, "flags\t\t: fpu cx8 mmx sse sse2 lm pni ssse3 cx16 lahf_lm")
    assert instructions.missing(root, "x86_64") == ["popcnt", "sse4_1", "sse4_2"]


def test_an_arm_without_simd_is_named(tmp_path: Path) -> None:
    assert instructions.missing(cpuinfo(tmp_path, "Features\t: fp evtstrm crc32"), "aarch64") == ["asimd"]


@pytest.mark.parametrize("line", ["", "flags : sse2"])
def test_what_the_kernel_does_not_say_is_not_held_against_it(tmp_path: Path, line: str) -> None:
    assert instructions.missing(cpuinfo(tmp_path, line), "aarch64") == []
    assert instructions.missing(tmp_path / "nowhere", "x86_64") == []
    assert instructions.missing(tmp_path, "riscv64") == []


def test_no_command_goes_on_without_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(instructions, "missing", lambda: ["asimd"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 78
    assert capsys.readouterr().err == (
        "edged: this processor lacks asimd, which numpy and onnxruntime need: take a board with a newer one\n"
    )
