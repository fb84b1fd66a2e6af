"""Builds the .deb: edged with its wheels below /usr/lib/edged, a virtual environment of the distribution's python3.

Needs no root and runs nothing of the target, so that any machine builds for any target. `make deb` calls it.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from datetime import datetime, timezone
from email.utils import formatdate
from pathlib import Path

from sbom import bill, parts_of, table
from targets import HERE, Target, target_of

PROJECT = HERE.parents[1]
PRUNED = (
    "bin",  # starters for the machine that builds
    "onnxruntime/backend",
    "onnxruntime/capi/libonnxruntime.so*",  # for programs in C; the Python module has it all in itself
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "numpy/_core/_*_tests.*",
    "numpy/distutils",
    "numpy/f2py",
    "tqdm/completion.sh",
    "**/tests",
    "**/*.a",
    "**/*.c",
    "**/*.h",
    "**/*.lib",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
)
"""What the wheels bring and nobody needs where edged runs: tools, tests, and what only a compiler reads."""
RESTART = PROJECT / "systemd/edged.service.d/10-restart.conf"
GROWING_PAUSES = 254
"""The systemd that knows what stands in it; an older one would complain at each look at the unit."""
COMPLETION = (
    "from typer._completion_shared import get_completion_script as script; "
    "print(script(prog_name='edged', complete_var='_EDGED_COMPLETE', shell='bash'))"
)


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:4]))} …: {done.stdout}{done.stderr}".strip())
    return done.stdout


class Package:
    """One package and the folder in which it is put together."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.root = PROJECT / f"dist/root-python{target.python}-{target.arch}"
        self.site = self.root / f"usr/lib/edged/lib/python{target.python}/site-packages"
        self.time = int(os.environ.get("SOURCE_DATE_EPOCH") or commit_time())
        shutil.rmtree(self.root, ignore_errors=True)

    def file(self, path: str, content: str | bytes | Path) -> None:
        """Put a file; what is documentation for man or the changelog comes compressed, by its name."""
        data = content.read_bytes() if isinstance(content, Path) else content
        data = data.encode() if isinstance(data, str) else data
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(gzip.compress(data, 9, mtime=0) if path.endswith(".gz") else data)

    def libraries(self) -> None:
        """The pinned wheels and edged itself."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile"]
        pip += ["--target", str(self.site)]
        run(*pip, "--require-hashes", "-r", self.target.lock, *self.target.pip_options)
        run(*pip, "--no-deps", PROJECT)
        for pattern in PRUNED:
            for path in list(self.site.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for record in self.site.glob("*.dist-info"):
            # What pip wrote for itself: where from and when, which is not the same twice.
            for name in ("direct_url.json", "RECORD", "REQUESTED", "INSTALLER", "uv_cache.json"):
                (record / name).unlink(missing_ok=True)
        self.parts = parts_of(self.site, self.target.lock)
        (self.edged,) = (part for part in self.parts if part.name == "edged")
        self.version = f"{self.edged.version}+py{self.target.python}"

    def environment(self) -> None:
        """What makes usr/lib/edged a virtual environment; the template worker's ``python -I`` finds it by this."""
        home = self.root / "usr/lib/edged"
        self.file("usr/lib/edged/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
        (home / "bin").mkdir()
        (home / "bin/python3").symlink_to(f"../../../bin/python{self.target.python}")
        self.file("usr/bin/edged", HERE / "edged")
        self.file("etc/edged/edged.toml", PROJECT / "deploy/edged.example.toml")
        for unit in ("edged.service", "edged@.service"):
            self.file(f"usr/lib/systemd/system/{unit}", PROJECT / "systemd" / unit)
            if self.target.systemd >= GROWING_PAUSES:
                self.file(f"usr/lib/systemd/system/{unit}.d/{RESTART.name}", RESTART)
        self.file("usr/lib/sysusers.d/edged.conf", PROJECT / "systemd/edged.sysusers")
        completion = run(sys.executable, "-c", COMPLETION, PYTHONPATH=str(self.site), PYTHONDONTWRITEBYTECODE="1")
        self.file("usr/share/bash-completion/completions/edged", completion)

    def documents(self) -> None:
        doc = "usr/share/doc/edged"
        when = datetime.fromtimestamp(self.time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.file(f"{doc}/sbom.cdx.json", bill(self.parts, self.edged, when))
        self.file(f"{doc}/licences.txt", table(self.parts))
        self.file(f"{doc}/copyright", HERE / "copyright")
        changes = changelog((PROJECT / "CHANGELOG.md").read_text("utf-8"), self.version, self.time)
        self.file(f"{doc}/changelog.gz", changes)
        for example in sorted((PROJECT / "systemd/edged.service.d").glob("*.example")):
            self.file(f"{doc}/examples/edged.service.d/{example.name}", example)
        self.file("usr/share/man/man1/edged.1.gz", HERE / "edged.1")
        self.file("usr/share/lintian/overrides/edged", HERE / "edged.lintian-overrides")

    def control(self) -> None:
        minor = int(self.target.python[2:])
        tags = "".join(path.read_text() for path in self.site.glob("*.dist-info/WHEEL"))
        glibc = re.findall(r"manylinux_2_(\d+)_", tags)
        files = sorted(path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        self.installed = sum(-(-path.stat().st_size // 4096) * 4 for path in files)
        fields = (
            (HERE / "control")
            .read_text("utf-8")
            .format(
                version=self.version,
                arch=self.target.arch,
                size=self.installed,
                python=self.target.python,
                next=f"3.{minor + 1}",
                glibc=f"2.{max(map(int, glibc))}",
                system=self.target.system,
                systemd=self.target.systemd,
            )
        )
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(self.root)}\n" for path in files]
        self.file("DEBIAN/control", fields)
        self.file("DEBIAN/md5sums", "".join(sums))
        self.file("DEBIAN/conffiles", "/etc/edged/edged.toml\n")
        for script in ("postinst", "prerm", "postrm"):
            self.file(f"DEBIAN/{script}", HERE / script)

    def build(self) -> Path:
        executable = {self.root / "usr/bin/edged", *(self.root / "DEBIAN" / name for name in SCRIPTS)}
        for path in [self.root, *self.root.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path in executable else 0o644)
            os.utime(path, (self.time, self.time), follow_symlinks=False)
        made = PROJECT / f"dist/edged_{self.version}_{self.target.arch}.deb"
        made.parent.mkdir(exist_ok=True)
        run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", self.root, made, SOURCE_DATE_EPOCH=str(self.time))
        return made


SCRIPTS = ("postinst", "prerm", "postrm")


def commit_time() -> str:
    """When the last commit was made, so that the same sources give the same package; outside of git, now."""
    done = subprocess.run(["git", "-C", str(PROJECT), "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return done.stdout.strip() or str(int(time.time()))


def changelog(markdown: str, version: str, when: int) -> str:
    """The newest entry of CHANGELOG.md in Debian's form."""
    newest = re.split(r"^## .*\n", markdown, flags=re.M)[1]
    items = [
        textwrap.fill(" ".join(item.split()), 78, initial_indent="  * ", subsequent_indent="    ")
        for item in re.split(r"^- ", newest, flags=re.M)[1:]
    ]
    maintainer = re.search(r"^Maintainer: (.*)$", (HERE / "control").read_text("utf-8"), flags=re.M)
    assert maintainer
    text = "\n".join(items)
    return f"edged ({version}) stable; urgency=medium\n\n{text}\n\n -- {maintainer[1]}  {formatdate(when)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("--arch", required=True)
    arguments = parser.parse_args()
    try:
        target = target_of(arguments.python, arguments.arch)
    except ValueError as error:
        sys.exit(str(error))
    package = Package(target)
    package.libraries()
    package.environment()
    package.documents()
    package.control()
    made = package.build()
    print(f"{made.relative_to(PROJECT)} for {target.system} {target.arch}, {len(package.parts)} libraries")
    print(f"  size        {made.stat().st_size / 1e6:7.1f} MB")
    print(f"  installed   {package.installed * 1024 / 1e6:7.1f} MB, and what Python compiles on the board")
    print(f"  sha256      {hashlib.sha256(made.read_bytes()).hexdigest()}")
    if shutil.which("lintian"):
        found = subprocess.run(["lintian", "--fail-on", "error,warning", made], capture_output=True, text=True)
        print(found.stdout, end="")
        print("  lintian     " + ("FAILED" if found.returncode else "clean, but for the listed overrides"))
        sys.exit(found.returncode)
    print("  lintian     not installed, not run")


if __name__ == "__main__":
    main()
