"""Wheels of onnxruntime: the installed one under another version, and such as are broken in one way."""

from __future__ import annotations

import importlib.util
import platform
import sys
import zipfile
from pathlib import Path

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
MACHINE = platform.machine()
VERSION = "9.9.9"
NAME = f"onnxruntime_gpu-{VERSION}-{PYTHON}-{PYTHON}-linux_{MACHINE}.whl"
IN_USE = {"__init__.py", "capi"}
"""What edged needs of the installed package; the rest are tools."""

_origin = importlib.util.find_spec("onnxruntime")
assert _origin is not None
assert _origin.origin is not None
INSTALLED = Path(_origin.origin).parent
SAME = f"""
from pathlib import Path
__path__ = [{str(INSTALLED)!r}]
exec(Path({str(INSTALLED / "__init__.py")!r}).read_text())
"""
"""A module that is the installed onnxruntime, for a small wheel."""
OTHER = f'{SAME}__version__ = "{VERSION}"\n'
"""The same under another version."""
WRONG = (
    SAME
    + """
_bind = IOBinding.bind_cpu_input
IOBinding.bind_cpu_input = lambda self, name, array: _bind(self, name, array * 0 + 5 if name == "input_ids" else array)
"""
)
"""The same, and it reads other tokens than it is given."""


def make(folder: Path, init: str | None = None, name: str = NAME, **more: str) -> Path:
    """A wheel whose onnxruntime/__init__.py is `init`, else all of the installed one, with VERSION as its version."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    wheel = folder / name
    wheel.unlink(missing_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        if init is not None:
            archive.writestr("onnxruntime/__init__.py", init)
        else:
            for path in INSTALLED.rglob("*"):
                inner = path.relative_to(INSTALLED)
                if path.is_file() and inner.parts[0] in IN_USE and "libonnxruntime.so" not in path.name:
                    text = path.read_bytes() + (
                        f'\n__version__ = "{VERSION}"\n'.encode() if len(inner.parts) == 1 else b""
                    )
                    archive.writestr(f"onnxruntime/{inner}", text)
        archive.writestr(
            f"onnxruntime_gpu-{VERSION}.dist-info/METADATA", f"Name: onnxruntime-gpu\nVersion: {VERSION}\n"
        )
        for path, content in more.items():
            archive.writestr(path, content)
    wheel.chmod(0o644)
    return wheel
