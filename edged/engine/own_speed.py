"""How fast this board decodes beside its own best, so that a board that has become slow shows it.

The time of a step depends on its rows and on their context. So only steps of single tokens with as many rows and a
context of the same size, within a factor of two, are compared. The best is what such steps took in the board's fastest
window, kept per model in the state directory. Pauses between steps, such as the governor's, do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from edged.durable import write_durably
from edged.engine import ort
from edged.engine.loaded_model import LoadedModel
from edged.engine.steps import StepObserver, StepRecord
from edged.machine.board import Board

log = structlog.get_logger(__name__)

SPEED = "speed.json"
"""Name of the file under state_dir."""
WINDOW_SECONDS, WINDOW_STEPS = 20.0, 32
"""Steps are taken together until there are as many and they have taken so long: a burst above what a board can keep up
is no measure."""
RECENT_SECONDS = 600.0
WRITE_SECONDS = 3600.0
"""At the least between two writes, so that the card is spared."""
_MOST_BYTES, _MOST_MODELS = 1 << 20, 16

Kind = tuple[int, int]
"""Rows of a step, and the bits of the number of tokens that its longest row has."""


@dataclass
class _Window:
    steps: list[float] = field(default_factory=list)
    seconds: float = 0.0


class OwnSpeed(StepObserver):
    """Hears of the engine's steps on its thread; any thread reads `ratio`, and one writes."""

    def __init__(self, file: Path, now: Callable[[], float] = time.monotonic) -> None:
        """`file`: where the best is kept."""
        self._file = file
        self._now = now
        self._models: dict[str, dict[Kind, float]] = _read(file)
        self._best: dict[Kind, float] = {}
        self._windows: dict[Kind, _Window] = {}
        self._recent: deque[tuple[float, float, float]] = deque()
        """(when, seconds of a step, seconds of the best such step) of each window."""
        self._unwritten: str | None = None
        """The file's next content."""
        self._written = -math.inf

    def serve(self, model: LoadedModel, board: Board) -> None:
        """A model was loaded: what is compared is of the same package, onnxruntime, board and threads."""
        session = model.session
        of_model = model.package.fingerprint(), session.providers[0], session.layout.dtype, session.logits_computed
        here = ort.version(), board.model, board.processor(), model.threads
        self.begin(hashlib.sha256(repr((of_model, here)).encode()).hexdigest()[:32])

    def begin(self, identity: str) -> None:
        """Compare with what is kept for `identity` from now on."""
        self._best = self._models.pop(identity, {})
        self._models[identity] = self._best  # the newest at the end
        for oldest in [*self._models][:-_MOST_MODELS]:
            del self._models[oldest]
        self._windows, self._recent = {}, deque()

    def ended(self, step: StepRecord) -> None:
        """A step has ended."""
        if any(row.prompt or row.tokens != 1 for row in step.rows):
            return
        kind = len(step.rows), max(row.past for row in step.rows).bit_length()
        window = self._windows.setdefault(kind, _Window())
        window.steps.append(step.ended - step.began)
        window.seconds += step.ended - step.began
        if len(window.steps) >= WINDOW_STEPS and window.seconds >= WINDOW_SECONDS:
            del self._windows[kind]
            self._close(kind, statistics.median(window.steps))

    @property
    def ratio(self) -> float | None:
        """Time of the last ten minutes' steps by that of the best such ones; None where there were too few."""
        oldest = self._now() - RECENT_SECONDS
        with contextlib.suppress(RuntimeError):  # the engine's thread adds one at this moment: then the next time
            recent = [one for one in self._recent if one[0] >= oldest]
            return sum(one[1] for one in recent) / sum(one[2] for one in recent) if recent else None
        return None

    def _close(self, kind: Kind, seconds: float) -> None:
        now, best = self._now(), self._best.get(kind, math.inf)
        if seconds < best:
            better, best = seconds < 0.98 * best, seconds
            self._best[kind] = seconds
            if better:
                self._unwritten = self._document()
        self._recent.append((now, seconds, best))
        while self._recent[0][0] < now - RECENT_SECONDS:
            self._recent.popleft()

    def _document(self) -> str:
        document = {
            model: [[rows, bits, seconds] for (rows, bits), seconds in best.items()]
            for model, best in self._models.items()
        }
        return json.dumps(document) + "\n"

    def keep(self) -> None:
        """Write what has changed, if the last time is long enough ago; on the main thread."""
        if self._now() - self._written >= WRITE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what has changed, on the main thread. A failure is logged."""
        text = self._unwritten
        if text is None:
            return
        self._written = self._now()
        try:
            write_durably(self._file, text)
        except OSError as error:
            log.warning("speed_not_kept", file=str(self._file), reason=(error.strerror or str(error)).lower())
        if self._unwritten is text:  # else the engine's thread has a newer one
            self._unwritten = None


def _read(file: Path) -> dict[str, dict[Kind, float]]:
    """What is kept; nothing where the file is absent or damaged."""
    try:
        with file.open("rb") as opened:
            document = json.loads(opened.read(_MOST_BYTES))
        models = {
            str(model): {(int(rows), int(bits)): float(seconds) for rows, bits, seconds in best}
            for model, best in document.items()
        }
        if not all(0 < seconds < math.inf for best in models.values() for seconds in best.values()):
            raise ValueError("a time is no time")
        return models
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("speed_refused", file=str(file), reason=" ".join(str(error).split())[:200])
    return {}
