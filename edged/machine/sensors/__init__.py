"""A board's sensors: what each quantity is, where each board has it, and the thread that reads them."""

from __future__ import annotations

from pathlib import Path

from edged.machine.board import Board
from edged.machine.sensors import jetson, linux, power, raspberry_pi
from edged.machine.sensors.quantities import Sensor
from edged.machine.sensors.vcio import Gencmd, gencmd


def find_sensors(board: Board, state_dir: Path, ask: Gencmd | None = None) -> list[Sensor]:
    """All sensors of `board` as of now; those that come up later (a hot-plugged chip) are in the next list.

    `state_dir`: on the disk whose space and wear are read. `ask`: the firmware of a Raspberry Pi; None: /dev/vcio.
    """
    found = [*linux.sensors(board, state_dir)]
    if board.kind == "raspberry_pi":
        found += raspberry_pi.sensors(board, ask or gencmd(board.root))
    elif board.kind == "jetson":
        found += jetson.sensors(board)
    return found


def power_meter(board: Board, ask: Gencmd | None = None) -> power.PowerMeter:
    """Reads what `board` draws, by rail; without a rail where it measures nothing."""
    if raspberry_pi.has_pmic(board):
        return raspberry_pi.PmicMeter(ask or gencmd(board.root))
    if board.kind == "jetson":
        return jetson.InaMeter(board)
    return power.RaplMeter(board.root)


def facts(board: Board, ask: Gencmd | None = None) -> dict[str, str]:
    """What has a name and no number: `power_mode` and `reset_reason`, each where the board tells."""
    if board.kind == "raspberry_pi":
        return raspberry_pi.facts(ask or gencmd(board.root))
    if board.kind == "jetson":
        return jetson.facts(board)
    return linux.facts(board)
