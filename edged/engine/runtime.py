"""Selects which onnxruntime this process uses: the installed one, or a wheel from the folder model.runtime_wheels.

edged is installed with an onnxruntime for the CPU. A GPU build fits only one kind of board and its system, so the
owner provides the wheel. edged unpacks it into state_dir, and a separate process imports it and checks it with the
known answers of the demo model. Only then does it go to the front of sys.path. If any of this fails, edged logs the
reason and uses the installed onnxruntime.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
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
"""Limit for importing and checking a runtime, on a slow board with a slow card."""
UNPACK_SECONDS = 600.0
"""Limit for unpacking a wheel there: NVIDIA's have hundreds of megabytes."""
MOST_BYTES = 4 << 30
"""Largest size of an unpacked wheel."""
_OLDEST = (1, 23)
_NAME = re.compile(r"onnxruntime(?:_gpu)?-([\w.+!]+)(?:-\d\w*)?-([\w.]+)-([\w.]+)-([\w.]+)\.whl")
_RUNTIMES = "runtimes"


class WheelError(Exception):
    """The wheel cannot be used. The message is one line with the reason and the remedy."""


@dataclass(frozen=True)
class Runtime:
    """The onnxruntime of this process. `wheel`: the file that it was unpacked from; None: the installed one.

    `refused`: one line that says why model.runtime_wheels is set and not used, else None.
    """

    wheel: Path | None = None
    refused: str | None = None


selected = Runtime()
"""Global, since a process can import onnxruntime only once."""


def select_runtime(settings: Settings, check_package: Path) -> Path | None:
    """Make this process import onnxruntime from the wheel in model.runtime_wheels, if that is set.

    Call this before the first import of onnxruntime. `check_package`: folder of a package with known answers. If the
    wheel is refused, the reason is logged and stored in `selected`. Returns the folder with the unpacked wheel, of a
    refused one too: the library that it lacks may be installed later, and unpacking again would wear out the card.
    """
    global selected
    folder, unpacked = settings.model.runtime_wheels, None
    if folder is None:
        return None
    assert "onnxruntime" not in sys.modules
    began = time.monotonic()
    try:
        wheel, unpacked = unpack_wheel(folder, _unpack_folder(settings.state_dir))
        check_wheel(wheel, unpacked, check_package)
    except WheelError as error:
        selected = Runtime(refused=f"model.runtime_wheels = {folder} is not used: {error}")
        log.warning("runtime_wheels_refused", reason=selected.refused, hint="edged uses the installed onnxruntime")
    else:
        sys.path.insert(0, str(unpacked))
        selected = Runtime(wheel)
        log.info("runtime_from_wheel", wheel=str(wheel), seconds=round(time.monotonic() - began, 2))
    return unpacked


def remove_unused(state_dir: Path, keep: Path | None) -> None:
    """Remove the folders of earlier wheels. The caller must hold the lock of state_dir."""
    with suppress(OSError):
        for old in (state_dir / _RUNTIMES).iterdir():
            if old != keep:
                shutil.rmtree(old, ignore_errors=True)


def unpack_wheel(folder: Path, place: Path) -> tuple[Path, Path]:
    """Find the wheel in `folder` that fits this Python and machine, and unpack it below `place` unless it is there.

    Returns the wheel and the folder that it is unpacked in. Raises WheelError.
    """
    wheel = _find_wheel(folder)
    try:
        with wheel.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_rights(wheel, status)
            # Hashing hundreds of megabytes at each start would take a slow card many seconds.
            known = (wheel.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, edged.__version__)
            target = place / hashlib.sha256(repr(known).encode()).hexdigest()[:32]
            if not target.is_dir():
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                new = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
                try:
                    _unpack(wheel.name, file, new)
                    os.sync()  # the content must reach the disk before the name
                    try:
                        new.rename(target)
                    except OSError:
                        if not target.is_dir():  # else another process was faster
                            raise
                finally:
                    shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk of {place} is full: make space"
        raise WheelError(f"{wheel.name} cannot be unpacked: {reason}") from None
    return wheel, target


def check_wheel(wheel: Path, unpacked: Path, package: Path) -> None:
    """Import the runtime and compute the known answers of `package`, in a separate process since it may crash.

    Runs at every start: the runtime depends on libraries and drivers of the system, which change. Raises WheelError.
    """
    command = [sys.executable, "-I", "-m", "edged.engine.runtime_check", str(unpacked), str(package)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise WheelError(f"{wheel.name} gave no answer within {CHECK_SECONDS:g} s") from None
    except OSError as error:
        raise WheelError(f"{wheel.name} cannot be tried: {(error.strerror or str(error)).lower()}") from None
    fault: str | None = "the check ended without a result"
    with suppress(ValueError, LookupError, TypeError):  # the last line, since the runtime may print as well
        fault = json.loads(done.stdout.splitlines()[-1])["fault"]
    if b"compiled using NumPy 1.x" in done.stderr:  # the exception itself has no message
        fault = f"it was made for numpy 1, and here is {version('numpy')}: use one for numpy 2, or install 'numpy<2'"
    if done.returncode < 0:
        fault = f"it ended by {signal.Signals(-done.returncode).name} while it was imported and checked"
    elif done.returncode and fault is None:
        fault = f"the check ended with exit code {done.returncode}"
    if fault is not None:
        raise WheelError(f"{wheel.name} does not work here: {fault}")


def _find_wheel(folder: Path) -> Path:
    python, machine = f"cp{sys.version_info.major}{sys.version_info.minor}", platform.machine()
    try:
        folder = folder.resolve(strict=True)
        for at in (folder, *folder.parents):
            _check_rights(at, at.stat(), allow_sticky=at != folder)
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".whl")
    except FileNotFoundError:
        raise WheelError("there is no such folder: make it and put the wheel there") from None
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
    """Compare the tags in a wheel's name. Whether the C library is new enough shows at the import."""
    number, pythons, abis, platforms = name.groups()
    release = tuple(int(part) for part in re.findall(r"\d+", number)[:2])
    here = any(tag.startswith(("linux_", "manylinux")) and tag.endswith(f"_{machine}") for tag in platforms.split("."))
    return release >= _OLDEST and python in pythons.split(".") and python in abis.split(".") and here


def _check_rights(path: Path, status: os.stat_result, allow_sticky: bool = False) -> None:
    """Raises WheelError if a user other than root and this one could put code there."""
    if status.st_uid not in (0, os.geteuid()):
        raise WheelError(f"{path} belongs to another user, and edged runs what is in it: chown root {path}")
    if status.st_mode & 0o022 and not (allow_sticky and status.st_mode & stat.S_ISVTX):
        raise WheelError(f"{path} can be written by others, and edged runs what is in it: chmod go-w {path}")


def _unpack(name: str, file: IO[bytes], target: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [(member, PurePosixPath(member.filename)) for member in archive.infolist() if not member.is_dir()]
            if any(path.is_absolute() or ".." in path.parts for _, path in members):
                raise WheelError(f"{name} holds files with paths outside of the folder: do not trust this wheel")
            # Nothing else, since this folder comes before every other one on sys.path.
            members = [(m, path) for m, path in members if re.fullmatch(r"onnxruntime|.+\.libs", path.parts[0])]
            needed, free = sum(member.file_size for member, _ in members), shutil.disk_usage(target).free
            if needed > MOST_BYTES:
                raise WheelError(f"{name} would unpack to {size(needed)}: the limit is {size(MOST_BYTES)}")
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


def _unpack_folder(state_dir: Path) -> Path:
    """The folder to unpack in: below state_dir if this user owns it, else a temporary one that is removed at exit.

    Otherwise root would run code that the daemon's user can change.
    """
    with suppress(OSError):
        if state_dir.stat().st_uid == os.geteuid():
            return state_dir / _RUNTIMES
    try:
        place = Path(tempfile.mkdtemp(prefix="edged-runtime-", dir="/var/tmp"))  # not /tmp, which may be in memory
    except OSError as error:
        raise WheelError(f"there is no folder to unpack it in: {error.filename}: {error.strerror}") from None
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
