"""How the last process ended is told right after the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edged.jobs.crash import CrashLedger, LastEnd

_RUN = """
import os, sys, time
from pathlib import Path
from edged.jobs.crash import CrashLedger
ledger = CrashLedger(Path(sys.argv[1]), "boot-1")
ledger.write_running([3, 4])
ledger.write_running([4])
if sys.argv[2] == "close":
    ledger.close()
    ledger.write_running([9])
else:
    os.kill(os.getpid(), int(sys.argv[2]))
"""


def last_end(folder: Path, how: str, boot: str = "boot-1") -> LastEnd:
    subprocess.run([sys.executable, "-c", _RUN, str(folder), how], check=False)
    ledger = CrashLedger(folder, boot)
    ledger.close()
    return ledger.last_end


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE"])
def test_a_crash_of_its_own_making_is_one(tmp_path: Path, name: str) -> None:
    end = last_end(tmp_path, str(int(getattr(signal, name))))
    assert end.running == (4,)
    assert end.crash is not None
    assert end.crash.startswith("Fatal Python error")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_from_outside_is_none(tmp_path: Path, number: signal.Signals) -> None:
    assert last_end(tmp_path, str(int(number))) == LastEnd(None, (4,))


def test_an_orderly_end_leaves_nothing_even_if_the_engine_outlasts_it(tmp_path: Path) -> None:
    assert last_end(tmp_path, "close") == LastEnd(None, ())


def test_after_a_reboot_nobody_is_to_blame(tmp_path: Path) -> None:
    assert last_end(tmp_path, str(int(signal.SIGSEGV)), boot="boot-2") == LastEnd(None, (4,))


def test_a_crash_is_counted_once(tmp_path: Path) -> None:
    assert last_end(tmp_path, str(int(signal.SIGSEGV))).crash
    assert last_end(tmp_path, str(int(signal.SIGKILL))).crash is None


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ("core-dump dumped SEGV", True),
        ("watchdog dumped ABRT", True),
        ("oom-kill killed KILL", True),
        ("signal killed BUS", True),
        ("signal killed KILL", False),
        ("success exited 0", False),
        ("", False),
    ],
)
def test_what_systemd_saw_counts_where_there_are_no_last_words(tmp_path: Path, words: str, counts: bool) -> None:
    ledger = CrashLedger(tmp_path, "boot-1")
    ledger.write_running([7])
    (tmp_path / "last-exit").write_text(words)
    again = CrashLedger(tmp_path, "boot-1")
    assert (again.last_end.crash is not None, again.last_end.running) == (counts, (7,))
    assert CrashLedger(tmp_path, "boot-1").last_end.crash is None
    for open_ledger in (ledger, again):
        open_ledger.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"jobs": 5}', b'{"jobs": ["x"]}', b"\0" * 4096, b"\xff"])
def test_a_torn_note_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "running").write_bytes(content)
    ledger = CrashLedger(tmp_path, "boot-1")
    ledger.close()
    assert ledger.last_end == LastEnd(None, ())


def test_the_files_are_the_daemons_own(tmp_path: Path) -> None:
    CrashLedger(tmp_path, "boot-1").close()
    assert os.stat(tmp_path / "running").st_mode & 0o777 == 0o600


def test_a_disk_that_takes_no_writes_does_not_stop_the_engine(tmp_path: Path) -> None:
    ledger, running = CrashLedger(tmp_path, "boot-1"), os.path.realpath(tmp_path / "running")
    (descriptor,) = (n for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}") == running)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, int(descriptor))
    os.close(full)
    ledger.write_running([7])
    ledger.close()
