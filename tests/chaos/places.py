"""Places of a device's own, made by root: a network that can be cut, a small disk that fills and breaks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


class Skipped(Exception):
    """The phase cannot be had here; the message says why."""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def _need(what: str, *programs: str) -> None:
    if os.geteuid() != 0:
        raise Skipped(f"{what} needs root")
    for program in programs:
        if shutil.which(program) is None:
            raise Skipped(f"{what} needs {program}")


class Network:
    """A network namespace with one link to the host."""

    def __init__(self, name: str, host: str, device: str, address: str) -> None:
        self.name, self._host, self._device = name, host, device
        self.address = address
        """The host's, as seen from inside."""

    @property
    def command(self) -> list[str]:
        """Runs what follows inside."""
        return ["ip", "netns", "exec", self.name]

    def down(self, seconds: float, outside: bool) -> None:
        """`ip link set down` at one end, for so long."""
        where = ["ip"] if outside else ["ip", "-n", self.name]
        link = self._host if outside else self._device
        _run(*where, "link", "set", link, "down")
        time.sleep(seconds)
        _run(*where, "link", "set", link, "up")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network for one device. Raises Skipped."""
    _need("a network namespace", "ip")
    pid = os.getpid()
    name, host, device = f"edged-chaos-{pid}", f"ech{pid}", f"ecd{pid}"
    net = f"10.213.{pid % 250}"
    try:
        _run("ip", "netns", "add", name)
    except OSError as error:
        raise Skipped(f"no network namespace here: {error}") from None
    try:
        try:
            _run("ip", "link", "add", host, "type", "veth", "peer", "name", device, "netns", name)
            _run("ip", "address", "add", f"{net}.1/24", "dev", host)
            _run("ip", "link", "set", host, "up")
            _run("ip", "-n", name, "address", "add", f"{net}.2/24", "dev", device)
            _run("ip", "-n", name, "link", "set", device, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
        except OSError as error:
            raise Skipped(f"no link into a network namespace here: {error}") from None
        yield Network(name, host, device, f"{net}.1")
    finally:
        _run("ip", "netns", "del", name)


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._image, self.path = folder / "image", folder / "mounted"
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)
        self.path.mkdir()
        _run("mkfs.ext4", "-q", "-m", "0", str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop,errors=remount-ro", str(self._image), str(self.path))

    def unmount(self) -> None:
        _run("umount", str(self.path))

    def fill(self) -> None:
        """Until nothing more goes in."""
        ballast = os.open(self.path / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 10):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(ballast, b"x" * size)
        os.close(ballast)

    def free(self) -> None:
        """Give back what fill() took."""
        (self.path / "ballast").unlink()

    def fail(self) -> None:
        """An error as of a bad card: the kernel remounts the disk read-only, under those who write to it."""
        self._trigger.write_text("1")

    @property
    def breakable(self) -> bool:
        """Whether the kernel takes the order to fail."""
        return os.access(self._trigger, os.W_OK)

    @property
    def _trigger(self) -> Path:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        mounted = next(line.split()[0] for line in lines if line.split()[1] == str(self.path))
        return Path(f"/sys/fs/ext4/{Path(os.path.realpath(mounted)).name}/trigger_fs_error")

    def mend(self) -> None:
        """What a restart of the board does: check and mount again. Nobody uses it meanwhile.

        A copy of the image: the old mount lives on where another process took it into a namespace of its own.
        """
        self.unmount()
        broken, self._image = self._image, self._image.with_name(f"{self._image.name}-mended")
        shutil.copyfile(broken, self._image)
        broken.unlink()
        checked = subprocess.run(["fsck.ext4", "-p", str(self._image)], capture_output=True, text=True)
        if checked.returncode > 1:
            raise OSError(f"fsck.ext4: {checked.stdout}{checked.stderr}")
        self.mount()


@contextlib.contextmanager
def disk(megabytes: int) -> Iterator[Disk]:
    """A small disk. Raises Skipped."""
    _need("a loop device", "mkfs.ext4", "fsck.ext4", "mount")
    folder = Path(tempfile.mkdtemp(prefix="edged-chaos-disk-"))
    try:
        made = Disk(folder, megabytes)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Skipped(f"no loop device here: {error}") from None
    try:
        if not made.breakable:
            raise Skipped("the kernel breaks no disk by order here (trigger_fs_error)")
        yield made
    finally:
        made.unmount()
        shutil.rmtree(folder)
