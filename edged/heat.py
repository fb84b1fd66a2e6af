"""How much of its time the engine may compute so that the hottest zone stays near its limit (pure).

Close to the limit this is a PI controller: the duty follows the distance to the target and, slowly, its integral.
Sensors have steps of up to a kelvin (a Pi's has about half of one), which are no speed of warming and nothing that a
duty could undo. So a single step moves the duty a little, within a step of the target the integral rests, and the speed
of warming is that of steps which follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass

TARGET_KELVIN = 0.5
"""Below the limit."""
NEAR_KELVIN = 2.0
"""So far below the target the duty rises at full speed."""
RISE = 0.005
"""Of the duty in a second: boards take minutes to warm up, and their sensors are read every five seconds."""
GAIN = 0.06
"""Of the duty for a kelvin: a board's whole duty is worth some 40 K (tests/unit/simulated_board.py)."""
INTEGRAL_SECONDS = 120.0
"""Within this time the integral adds as much as a lasting distance does at once."""
REST = 0.8
"""Steps of the sensor around the target in which the integral rests."""
CLOSE_KELVIN = 0.35
FALL = 0.98
"""A zone that will be closer than that to its limit makes the duty fall by this factor in a second, and once again for
each half kelvin beyond."""
LEAD_SECONDS = 25.0
"""What counts is how near it will be after so long if it goes on warming up as it does: a board's heat follows the duty
by minutes, so a duty that waits for the limit falls too late and too far."""
COARSEST, FINEST = 1.0, 0.05
"""Kelvin of a sensor's step, until a smaller one is seen, and at the least."""


@dataclass(frozen=True)
class Heat:
    """What the hottest zone has done."""

    margin: float | None = None
    """Kelvin that it is below its limit; None: not known."""
    before: float | None = None
    """The margin of the decision before."""
    step: float = COARSEST
    """The smallest change of the margin that was seen, in kelvin."""
    still: float = 0.0
    """Seconds since it changed last."""
    moved: float = 0.0
    """The change then; above 0, the zone became warmer."""
    speed: float = 0.0
    """Kelvin in a second by which it became warmer then."""

    def after(self, margin: float | None, seconds: float) -> Heat:
        """What is known with the margin of `seconds` later."""
        if margin is None or self.margin is None:
            return Heat(margin, margin, self.step)
        still, moved = self.still + seconds, self.margin - margin
        if not moved:
            return Heat(margin, self.margin, self.step, still, self.moved, self.speed)
        step = max(FINEST, min(self.step, abs(moved)))
        # One step warmer after one cooler, or the first, is a zone between two steps.
        warming = moved > 0 and (self.moved > 0 or moved > 1.5 * step)
        return Heat(margin, self.margin, step, 0.0, moved, moved / still if warming else 0.0)

    @property
    def warming(self) -> float:
        """Kelvin in a second by which it becomes warmer, as far as its sensor can tell."""
        return min(self.speed, self.step / max(1.0, self.still))

    @property
    def close(self) -> float:
        """Kelvin by which it will be closer to its limit than it should; 0 or less: it will not."""
        return -1.0 if self.margin is None else CLOSE_KELVIN - (self.margin - LEAD_SECONDS * self.warming)

    def duty(self, duty: float, seconds: float) -> float:
        """The duty for the next `seconds`, from that of the last; it may be above 1."""
        if self.margin is None or self.before is None:
            return duty + RISE * seconds
        distance, earlier = (min(NEAR_KELVIN, margin - TARGET_KELVIN) for margin in (self.margin, self.before))
        change, rest = 0.0, REST * self.step
        if self.close > 0:
            change = duty * (FALL ** (seconds * (1 + 2 * self.close)) - 1)
        elif distance >= NEAR_KELVIN:
            change = RISE * seconds
        elif abs(distance) > rest:
            change = GAIN / INTEGRAL_SECONDS * (distance - rest if distance > 0 else distance + rest) * seconds
        if duty < 1.0:  # one that is not held back is left alone until it comes close
            change += GAIN * (distance - earlier)
        return duty + change
