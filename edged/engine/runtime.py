"""Another onnxruntime than the one edged came with: a wheel out of a folder that the settings name.

The package carries a runtime for the CPU. One for a GPU fits one kind of board and its system, so its owner lays it
there. It is unpacked into state_dir, a process apart imports it and asks it the demo model's known answers, and only
then it comes first on this process's path. Where anything is wrong with it, edged computes with its own and says so.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO

import structlog

import edged
from edged.machine.memory import size
from edged.machine.storage import SPARE_BYTES
from edged.settings import Settings

log = structlog.get_logger(__name__)

CHECK_SECONDS = 120.0
"""What a slow board may take to import a runtime from a slow card, and to ask it."""
UNPACK_SECONDS = 600.0
"""What it may take to unpack it there: NVIDIA's have hundreds of megabytes."""
RIGHT = "its answers are right"
"""Last line of wheels_check.py where all is well."""
_MOST_BYTES = 4 << 30
_OLDEST = (1, 23)
_NAME = re.compile(r"onnxruntime(?:_gpu)?-([\w.+!]+)(?:-\d\w*)?-([\w.]+)-([\w.]+)-([\w.]+)\.whl")
_RUNTIMES = "runtimes"


class WheelError(Exception):
    """The wheels cannot be used; one line that says why and what would be right."""


@dataclass(frozen=True)
class Runtime:
    """Which onnxruntime this process computes with. `wheel`: the file it is from; None: the one edged came with.

    `refused`: why it is not one from model.runtime_wheels, where that is set; one line.
    """

    wheel: Path | None = None
    refused: str | None = None


chosen = Runtime()
"""A process has one onnxruntime, so this is one for the process."""


def use(settings: Settings) -> Path | None:
    """Let this process compute with the wheel in model.runtime_wheels, if that is set; call it before ort is touched.

    Where the wheel is refused, the log says so, and `chosen` why. Returns where it was unpacked, refused or not: what
    it lacks may come, and a card is not to be written at each start.
    """
    global chosen
    folder, unpacked = settings.model.runtime_wheels, None
    if folder is None:
        return None
    assert "onnxruntime" not in sys.modules
    began = time.monotonic()
    try:
        wheel, unpacked = prepare(folder, _place(settings.state_dir))
        check(wheel, unpacked)
    except WheelError as error:
        chosen = Runtime(refused=f"model.runtime_wheels = {folder} is not used: {error}")
        log.warning("runtime_wheels_refused", reason=chosen.refused, hint="edged computes with the one it came with")
    else:
        sys.path.insert(0, str(unpacked))
        chosen = Runtime(wheel)
        log.info("runtime_from_wheel", wheel=str(wheel), seconds=round(time.monotonic() - began, 2))
    return unpacked


def tidy(state_dir: Path, keep: Path | None) -> None:
    """Remove what earlier wheels were unpacked to; only for who holds the lock of state_dir."""
    with suppress(OSError):
        for old in (state_dir / _RUNTIMES).iterdir():
            if old != keep:
                shutil.rmtree(old, ignore_errors=True)


def prepare(folder: Path, place: Path) -> tuple[Path, Path]:
    """The wheel in `folder` that fits this Python and machine, and where below `place` it is unpacked, once.

    Raises WheelError.
    """
    wheel = _choose(folder)
    try:
        with wheel.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_rights(wheel, status)
            # Reading hundreds of megabytes at each start would cost a slow card many seconds.
            known = (wheel.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, edged.__version__)
            target = place / hashlib.sha256(repr(known).encode()).hexdigest()[:32]
            if not target.is_dir():
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                new = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
                try:
                    _unpack(wheel.name, file, new)
                    os.sync()  # whole before it has its name
                    if not target.is_dir():  # another process was quicker
                        new.rename(target)
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk of {place} is full: make space"
        raise WheelError(f"{wheel.name} cannot be unpacked: {reason}") from None
    return wheel, target


def check(wheel: Path, unpacked: Path) -> None:
    """Let a process apart import the runtime and ask it what is known: a broken one ends that, and not this.

    At every start, since libraries and drivers of the system, on which it depends, come and go. Raises WheelError.
    """
    command = [sys.executable, "-I", "-m", "edged.engine.runtime_check", str(unpacked)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise WheelError(f"{wheel.name} gave no answer within {CHECK_SECONDS:g} s") from None
    except OSError as error:
        raise WheelError(f"{wheel.name} cannot be tried: {(error.strerror or str(error)).lower()}") from None
    lines = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip()]
    said = lines[-1] if lines else "it ended without a word"
    if b"compiled using NumPy 1.x" in done.stderr:  # the exception itself says nothing
        said = f"it was made for numpy 1, and here is {version('numpy')}: take one for numpy 2, or install 'numpy<2'"
    if done.returncode < 0:
        said = f"it ended by {signal.Signals(-done.returncode).name} while it was imported and asked"
    if done.returncode or said != RIGHT:
        raise WheelError(f"{wheel.name} does not work here: {said}")


def _choose(folder: Path) -> Path:
    python, machine = f"cp{sys.version_info.major}{sys.version_info.minor}", platform.machine()
    try:
        folder = folder.resolve(strict=True)
        for at in (folder, *folder.parents):
            _check_rights(at, at.stat(), sticky_will_do=at != folder)
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".whl")
    except FileNotFoundError:
        raise WheelError("there is no such folder: make it, with the wheel in it") from None
    except OSError as error:
        raise WheelError(f"it cannot be read: {(error.strerror or str(error)).lower()}") from None
    fitting = [name for name in names if (match := _NAME.fullmatch(name)) and _fits(match, python, machine)]
    if len(fitting) != 1:
        what = f"it has {len(fitting)} wheels that fit ({', '.join(fitting)})" if fitting else "no wheel in it fits"
        others = f"; it has {', '.join(names)}" if names and not fitting else ""
        want = f"one onnxruntime or onnxruntime_gpu, {_OLDEST[0]}.{_OLDEST[1]} or newer, for {python} on {machine}"
        raise WheelError(f"{what}: put {want} there{others}")
    return folder / fitting[0]


def _fits(name: re.Match[str], python: str, machine: str) -> bool:
    """By the tags in a wheel's name. Whether the C library is new enough shows when it is imported."""
    number, pythons, abis, platforms = name.groups()
    release = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    here = any(tag.startswith(("linux_", "manylinux")) and tag.endswith(f"_{machine}") for tag in platforms.split("."))
    return release >= _OLDEST and python in pythons.split(".") and python in abis.split(".") and here


def _check_rights(path: Path, status: os.stat_result, sticky_will_do: bool = False) -> None:
    """Raises WheelError where someone else than root and this user could lay code there."""
    if status.st_uid not in (0, os.geteuid()):
        raise WheelError(f"{path} belongs to another user, and edged runs what is in it: chown root {path}")
    if status.st_mode & 0o022 and not (sticky_will_do and status.st_mode & stat.S_ISVTX):
        raise WheelError(f"{path} can be written by others, and edged runs what is in it: chmod go-w {path}")


def _unpack(name: str, file: IO[bytes], target: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [(member, PurePosixPath(member.filename)) for member in archive.infolist() if not member.is_dir()]
            if any(path.is_absolute() or ".." in path.parts for _, path in members):
                raise WheelError(f"{name} holds files that would lie outside of their folder: it is no wheel to trust")
            # Nothing else: what lies there comes before every other module.
            members = [(m, path) for m, path in members if re.fullmatch(r"onnxruntime|.+\.libs", path.parts[0])]
            needed, free = sum(member.file_size for member, _ in members), shutil.disk_usage(target).free
            if needed > _MOST_BYTES:
                raise WheelError(f"{name} would unpack to {size(needed)}: at most {size(_MOST_BYTES)} are taken")
            if needed + SPARE_BYTES > free:
                raise WheelError(
                    f"{name} unpacks to {size(needed)} and {size(SPARE_BYTES)} must stay free; {target.parent} has "
                    f"{size(free)}: make space"
                )
            for member, path in members:
                place = target / path
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, place.open("xb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise WheelError(f"{name} is damaged: copy it again ({error})") from None


def _place(state_dir: Path) -> Path:
    """Where to unpack: in state_dir, else for as long as this process lives in a folder of its own.

    Root, for one, must not run what the daemon's user could have changed.
    """
    with suppress(OSError):
        if state_dir.stat().st_uid == os.geteuid():
            return state_dir / _RUNTIMES
    try:
        place = Path(tempfile.mkdtemp(prefix="edged-runtime-", dir="/var/tmp"))  # not /tmp, which may be in memory
    except OSError as error:
        raise WheelError(f"there is no place to unpack it: {error.filename}: {error.strerror}") from None
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
