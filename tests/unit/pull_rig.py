"""What the tests of `edged model` share: the command, packages to publish, and a web server that misbehaves as told."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
from engine_rig import copy_package
from patience import PATIENCE
from structlog.testing import capture_logs

from edged.cli import main


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Board:
    """A device's state_dir, and `edged model` for it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.state_dir = folder
        self.models = folder / "models"
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("EDGED_", "HF_"))}
        self.environment = {**keep, "EDGED_STATE_DIR": str(folder), **environment}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "edged", "model", *map(str, arguments)]

    def run(self, *arguments: str | Path, **environment: str) -> Done:
        """`edged model …` in this process, which is quick."""
        out, errors = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, {**self.environment, **environment}, clear=True),
            mock.patch.object(sys, "argv", ["edged", "model", *map(str, arguments)]),
            # Loggers would keep this stream for the tests that follow.
            mock.patch("edged.logs.configure"),
            capture_logs(),
            redirect_stdout(out),
            redirect_stderr(errors),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        return Done(int(ended.value.code or 0), out.getvalue(), errors.getvalue())

    def run_apart(self, *arguments: str | Path, **environment: str) -> Done:
        """The same as a process of its own."""
        done = subprocess.run(
            self.command(*arguments), env={**self.environment, **environment},
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*arguments), env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def succeed(self, *arguments: str | Path, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str | Path, code: int = 1, **environment: str) -> str:
        """The one line of a command that ends with `code`; lines of progress may stand before it."""
        done = self.run(*arguments, **environment)
        return refusal(done.returncode, done.stderr, code)

    def part(self, name: str, file: str = "model.onnx.data") -> Path:
        """What a pull has brought of a file."""
        return self.models / ".pulls" / name / f".{file}.part"


def refusal(returncode: int, stderr: str, code: int = 1) -> str:
    *progress, last = stderr.splitlines()
    assert last.startswith("edged: "), stderr
    assert all(" %  " in line for line in progress), stderr
    assert returncode == code, stderr
    return last


def publish(folder: Path, name: str = "phi3", pad: int = 0) -> Path:
    """A fixture package with its SHA256SUMS; `pad` more bytes at the end of its weights, which nobody reads."""
    package = copy_package(name, folder)
    if pad:
        with (package / "model.onnx.data").open("ab") as file:
            file.write(os.urandom(pad))
    write_sums(package)
    return package


def write_sums(package: Path) -> None:
    """As `sha256sum *` prints it."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(package)}\n"
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (package / "SHA256SUMS").write_text("".join(lines))


def same_files(one: Path, other: Path) -> bool:
    """Whether `other` holds each file of `one` that a package may hold."""
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.name != "SHA256SUMS"]
    return bool(names) and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


class Server(ThreadingHTTPServer):
    """Serves `folder`. `answer`, if set, is asked first with the handler, and says whether it has answered."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.answer: Callable[[_Handler], bool] = lambda _handler: False
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str) -> list[dict[str, str]]:
        """The headers of each GET of a path that ends with `name`."""
        return [headers for method, path, headers in self.asked if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_arguments: object) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        if self.server.answer(self):
            return
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if path.is_file():
            self.send_bytes(path.read_bytes())
        else:
            self.send_bytes(b"", 404)

    do_HEAD = do_GET

    def send_bytes(self, content: bytes, status: int = 200, cut: int | None = None, **headers: str) -> None:
        """Answer with `content`, of which only `cut` bytes are sent."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
