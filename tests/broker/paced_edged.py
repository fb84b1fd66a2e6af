"""Runs edged with a model and a machine that a test has in its hand: nothing of this is in the product.

TEST_PACE_FILE names a file that holds the seconds of a step, `hold` to stop in it until that changes, or `every` and
the seconds from one step to the next, where prompts cost nothing and delays do not add up. A prompt that
begins with POISON ends the process by SIGABRT once its answer has some tokens; one that is HANG never returns from
onnxruntime, and the text `hang` never becomes tokens: from then on, a step may take half a second. TEST_LOAD_SECONDS
is how long a load may take, which hangs while the pace is `no load`. TEST_BOOT_ID takes the place of the kernel's.
TEST_CLOCK_FILE holds seconds that CLOCK_BOOTTIME is ahead (libfaketime cannot move it without CLOCK_MONOTONIC, which no
day passes by in a test), TEST_SYNCHRONISED says whether the wall clock is. TEST_RENDER_SECONDS is how long a chat
template may take, TEST_LEAVE_SECONDS for how long a device fails to serve before it leaves its groups, and
TEST_ANSWER_SECONDS for how long it relies on another that serves. The prompt ENDS ends the engine's thread, the text
`end` that of the preparer, by an exception that nothing catches. With TEST_PINNED_ABORTS, pinned prompts end the
process by SIGABRT. TEST_ROOT is a folder with the /proc, /sys and /etc of the board to take this machine for.
"""

from __future__ import annotations

import functools
import importlib
import os
import runpy
import select
import threading
import time
from pathlib import Path
from typing import Any

from edged import app, daemon, liveness, membership
from edged.engine import template
from edged.engine.engine import Engine
from edged.engine.session import ModelSession
from edged.engine.tokenizer import Tokenizer
from edged.machine.clock import Clock

POISON, HANG, ENDS = (7, 7, 7), (13, 13, 13), (11, 11, 11)
_pace_file = Path(os.environ["TEST_PACE_FILE"])
_step, _forward, _bring_up, _encode = Engine._step, ModelSession.forward, app.load_model, Tokenizer.encode_text


_next_step = 0.0


def _until_next(self: Engine, seconds: float) -> None:
    global _next_step
    if not any(row.reading for row in self.rows):
        _next_step = max(_next_step + seconds, time.monotonic())
        _sleep(_next_step - time.monotonic())


def _sleep(seconds: float) -> None:
    select.select([], [], [], max(0.0, seconds))  # time.sleep() fails under libfaketime


def _paced_step(self: Engine, active: Any) -> None:
    while self.rows and (pace := _pace_file.read_text()) != "":
        if pace != "hold":
            what, _, every = pace.partition(" ")
            _until_next(self, float(every)) if what == "every" else _sleep(float(pace))
            break
        _sleep(0.002)
    if any(row.request.prompt[:3] == POISON and row.made >= 3 for row in self.rows):
        os.abort()
    if "TEST_PINNED_ABORTS" in os.environ and any(row.request.key < 0 for row in self.rows):
        os.abort()
    if any(row.request.prompt == ENDS for row in self.rows):
        raise SystemExit  # ends the thread, and no `except Exception` stops it
    _step(self, active)


def _hang() -> None:
    # Only now: what takes its time on a busy machine must not be taken for hung.
    liveness.STUCK_SECONDS = 0.5
    threading.Event().wait()


def _hung_load(*arguments: Any, **options: Any) -> Any:
    while _pace_file.read_text() == "no load":
        _sleep(0.01)
    return _bring_up(*arguments, **options)


def _hung_forward(self: ModelSession, first: int, ids: Any, *more: Any) -> Any:
    if tuple(ids[0]) == HANG:
        _hang()
    return _forward(self, first, ids, *more)


def _hung_encode(self: Tokenizer, text: str) -> list[int]:
    if text == "hang":
        _hang()
    if text == "end":
        raise SystemExit
    return _encode(self, text)


Engine._step = _paced_step  # type: ignore[method-assign]
ModelSession.forward = _hung_forward  # type: ignore[method-assign]
Tokenizer.encode_text = _hung_encode  # type: ignore[method-assign]
if "TEST_BOOT_ID" in os.environ:
    Clock.boot_id = lambda _self: os.environ["TEST_BOOT_ID"]  # type: ignore[method-assign]
if "TEST_CLOCK_FILE" in os.environ:
    _boottime, _clock_file = Clock.boottime, Path(os.environ["TEST_CLOCK_FILE"])
    Clock.boottime = lambda self: _boottime(self) + float(_clock_file.read_text())  # type: ignore[method-assign]
if "TEST_SYNCHRONISED" in os.environ:
    Clock.synchronised = lambda _self: os.environ["TEST_SYNCHRONISED"] == "1"  # type: ignore[method-assign]
app.load_model = _hung_load
liveness.LOAD_SECONDS = float(os.environ.get("TEST_LOAD_SECONDS", liveness.LOAD_SECONDS))
template.RENDER_SECONDS = float(os.environ.get("TEST_RENDER_SECONDS", template.RENDER_SECONDS))
if "TEST_LEAVE_SECONDS" in os.environ:
    membership.LEAVE_SECONDS = float(os.environ["TEST_LEAVE_SECONDS"])
    membership.ANSWER_SECONDS = float(os.environ["TEST_ANSWER_SECONDS"])
    membership.ASK_SECONDS = daemon.IDLE_SECONDS = 1.0
if "TEST_ROOT" in os.environ:
    command = importlib.import_module("edged.cli.run")
    command.build = functools.partial(app.build, root=Path(os.environ["TEST_ROOT"]))  # type: ignore[attr-defined]
runpy.run_module("edged", run_name="__main__")
