"""A simulated Raspberry Pi 5 under the governor, and its hours as plots: run, it prints a table and writes them.

`make show-governor` does so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.governor import Hold, Strain, govern

PLOTS = Path(__file__).parents[2] / "docs/governor.svg"
SHOWN = ((45, False), (50, False), (55, False), (60, True))
"""Degrees Celsius of the air, and whether there is a fan."""
LIMIT = 85.0


class Pi5:
    """Heat, fan and firmware of a Pi 5, in steps of a second.

    Idle 2.7 W and about 50 °C without a cooler, 7.2 W with four busy cores, and 89 °C: 9 K/W. The Active Cooler holds
    72 °C at most (phoronix.com/review/raspberry-pi-5-benchmarks): 7 K/W with its fan off, 5.5 at full speed. 80 °C
    comes within minutes: 22 J/K. The fan starts at 50 °C and turns fully at 75; from 80 °C on the firmware lowers the
    cores' frequency, to 1.5 GHz at 85, where it lowers that of the memory's controller too
    (raspberrypi.com/documentation). Assumed: power goes as the frequency's power of 2.5, tokens as its power of 0.6,
    since decoding waits for memory, and a lowered memory makes 0.7 of them.
    """

    def __init__(self, ambient: float, fan: bool, *, lowers: bool = True, joules_per_kelvin: float = 22.0) -> None:
        """`lowers`: whether the firmware lowers frequencies; there are boards where nobody does."""
        self.ambient, self.fan, self.lowers, self.joules_per_kelvin = ambient, fan, lowers, joules_per_kelvin
        self.celsius = ambient + 2.7 * 8.0
        self.watts = 2.7

    def second(self, duty: float) -> float:
        """Tokens made in a second in which the engine computes for `duty` of it; 1 is a cool board's."""
        lowered = min(1.0, max(0.0, (self.celsius - 80) / 5)) if self.lowers else 0.0
        frequency = 2.4 - 0.9 * lowered
        speed = (frequency / 2.4) ** 0.6 * (0.7 if self.lowers and self.celsius >= 85 else 1.0)
        self.watts = 2.7 + 4.5 * (frequency / 2.4) ** 2.5 * duty
        blown = min(1.0, max(0.0, (self.celsius - 50) / 25))
        resistance = 7.0 - 1.5 * blown if self.fan else 9.0
        self.celsius += (self.watts - (self.celsius - self.ambient) / resistance) / self.joules_per_kelvin
        return speed * duty


@dataclass(frozen=True)
class Hour:
    """Each second of an hour of jobs that always wait."""

    celsius: Sequence[float]
    duties: Sequence[float]
    speeds: Sequence[float]
    """Tokens of the second; 1 is a cool board's."""

    @property
    def tokens(self) -> float:
        return sum(self.speeds)

    @property
    def hottest(self) -> float:
        return max(self.celsius)


def hour(board: Pi5, governed: bool, *, step: float = 0.0, grid: float = 0.0) -> Hour:
    """The sensor is read every 5 s. `step`: kelvin between two of its values, of which `grid` is one; 0: none."""
    celsius, duties, speeds = list[float](), list[float](), list[float]()
    hold, seen = Hold(), board.celsius
    for second in range(3600):
        if second % 5 == 0:
            seen = math.floor((board.celsius - grid) / step) * step + grid if step else board.celsius
        if governed:
            hold = govern(hold, Strain(heat_margin=LIMIT - seen, watts=board.watts), 1.0, budget=None, most_rows=8)
        speeds.append(board.second(hold.duty))
        celsius.append(board.celsius)
        duties.append(hold.duty)
    return Hour(celsius, duties, speeds)


def swing(hour: Hour) -> float:
    """Between the least and the largest duty of the last two thirds of the hour."""
    settled = hour.duties[1200:]
    return max(settled) - min(settled)


# Plots

WIDTH, HEIGHT, GAP, TOP = 300, 150, 50, 40
FREE, HELD = "#c2410c", "#1d4ed8"
"""Colours that are told apart in grey too, on white."""


def drawn() -> str:
    """An SVG: a column for each of SHOWN, with temperature and tokens a second over the hour."""
    columns = len(SHOWN)
    width, height = columns * (WIDTH + GAP) + GAP, TOP + 2 * (HEIGHT + GAP)
    parts = [*_legend()]
    for column, (ambient, fan) in enumerate(SHOWN):
        free, held = hour(Pi5(ambient, fan), governed=False), hour(Pi5(ambient, fan), governed=True)
        left = GAP + column * (WIDTH + GAP)
        title = f"{ambient} °C of air, {'with' if fan else 'without'} a fan"
        parts.append(f'<text x="{left}" y="{TOP - 8}" font-weight="bold">{title}</text>')
        parts += _plot(left, TOP, "°C", (60, 110), free.celsius, held.celsius, LIMIT)
        means = [_means(run.speeds) for run in (free, held)]
        parts += _plot(left, TOP + HEIGHT + GAP, "speed", (0, 1), means[0], means[1])
    size = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    about = "<title>A simulated Raspberry Pi 5, an hour of jobs, without and with the governor</title>"
    return "\n".join([head, about, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def _means(values: Sequence[float]) -> list[float]:
    """Of each minute, since single seconds swing by the sensor's steps."""
    return [sum(values[n : n + 60]) / 60 for n in range(0, len(values), 60)]


def _legend() -> Iterator[str]:
    for x, colour, text in ((GAP, FREE, "without the governor"), (GAP + 180, HELD, "with it")):
        yield f'<path d="M{x},10h20" stroke="{colour}" stroke-width="2"/><text x="{x + 26}" y="14">{text}</text>'


def _plot(
    left: int,
    top: int,
    unit: str,
    span: tuple[float, float],
    free: Sequence[float],
    held: Sequence[float],
    limit: float | None = None,
) -> Iterator[str]:
    def y(value: float) -> float:
        return round(top + HEIGHT * (1 - (value - span[0]) / (span[1] - span[0])), 1)

    yield f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>'
    for value in (*span, *([limit] if limit else ())):
        yield f'<text x="{left - 6}" y="{y(value) + 4}" text-anchor="end">{value:g}</text>'
    yield f'<text x="{left + WIDTH - 6}" y="{top + 16}" text-anchor="end">{unit}</text>'
    yield f'<text x="{left + WIDTH}" y="{top + HEIGHT + 16}" text-anchor="end">60 min</text>'
    if limit is not None:
        yield f'<path d="M{left},{y(limit)}h{WIDTH}" stroke="#999" stroke-dasharray="4"/>'
    for values, colour in ((free, FREE), (held, HELD)):
        step = max(1, len(values) // 60)
        taken = list(enumerate(values))[::step]
        points = " ".join(f"{round(left + WIDTH * n / len(values), 1)},{y(value)}" for n, value in taken)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def main() -> None:
    print("a simulated Raspberry Pi 5, an hour of jobs that always wait: with the governor / without")
    print("  air    cooler    tokens of a cool board    °C at most     duty at least  its swing, sensor without steps")
    print("                                                                           / of 0.55 K / of 1 K")
    for fan in (False, True):
        for ambient in (15, 25, 35, 45, 50, 55, 60):
            free, held = hour(Pi5(ambient, fan), governed=False), hour(Pi5(ambient, fan), governed=True)
            swings = [swing(hour(Pi5(ambient, fan), governed=True, step=step)) for step in (0.0, 0.55, 1.0)]
            print(
                f"  {ambient} °C  {'fan ' if fan else 'none'}      {held.tokens / 3600:.3f} / {free.tokens / 3600:.3f}"
                f"            {held.hottest:5.1f} / {free.hottest:5.1f}"
                f"  {min(held.duties):8.2f}       {' / '.join(f'{one:.2f}' for one in swings)}"
            )
    PLOTS.write_text(drawn(), encoding="utf-8")
    print(f"drawn: {PLOTS}")


if __name__ == "__main__":
    main()
