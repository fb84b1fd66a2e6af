"""`edged model pull` from a real nginx: cuts, kills, full disks, certificates. What was sent stands in its log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENCE, eventually
from pull_rig import Board, publish, refusal, same_files, write_sums

WEIGHTS = "model.onnx.data"
PAD = 6 << 20
"""Bytes that make the weights last: a few seconds at RATE."""
RATE = "1m"

if shutil.which("nginx") is None or shutil.which("openssl") is None:
    pytest.skip("nginx or openssl is not installed: make test-pull installs them", allow_module_level=True)

CONFIG = """
daemon off;
master_process on;
worker_processes 1;
{user}
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    log_format sent escape=json '{{"method": "$request_method", "path": "$uri", "status": $status, '
        '"bytes": $body_bytes_sent, "range": "$http_range", "if_range": "$http_if_range"}}';
    access_log {folder}/access.log sent;
    client_body_temp_path {folder}/temp; proxy_temp_path {folder}/temp; fastcgi_temp_path {folder}/temp;
    uwsgi_temp_path {folder}/temp; scgi_temp_path {folder}/temp;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        root {folder}/www;
        location ~ \\.data$ {{ limit_rate {rate}; }}
        location /gone/ {{ return 410; }}
        location /private/ {{ return 403; }}
        location /broken/ {{ return 500; }}
        location /plain/ {{ return 302 http://127.0.0.1:{port}/phi3/SHA256SUMS; }}
        location /away/ {{ return 302 ftp://127.0.0.1/phi3/SHA256SUMS; }}
    }}
}}
"""


@dataclass(frozen=True)
class Sent:
    """A line of the access log; `bytes` of the body that nginx handed to the kernel."""

    method: str
    path: str
    status: int
    bytes: int
    range: str
    if_range: str


class Nginx:
    """A server of its own, on free ports, with a certificate that no system trusts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.www = folder, folder / "www"
        self.www.mkdir()
        self.port, self.tls_port = _free_port(), _free_port()
        self.url, self.tls_url = f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{self.tls_port}"
        self.certificate = folder / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", folder / "key.pem", "-out", self.certificate, "-days", "2", "-subj", "/CN=edged test",
             "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, rate: str = RATE) -> None:
        """Run, or run anew with another rate for weights."""
        self.stop()
        config = self.folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            CONFIG.format(folder=self.folder, port=self.port, tls_port=self.tls_port, rate=rate, user=user)
        )
        command = ["nginx", "-p", str(self.folder), "-c", str(config), "-e", str(self.folder / "error.log")]
        self.process = subprocess.Popen(command)
        eventually(self._answers, "nginx does not answer")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE)

    def kill_worker(self) -> None:
        """End every connection with no goodbye; the master starts another worker."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    def sent(self, name: str = "", method: str = "GET") -> list[Sent]:
        """What was answered to requests for a path that ends with `name`, in order of their ends."""
        lines = (self.folder / "access.log").read_text().splitlines()
        all_sent = [Sent(**json.loads(line)) for line in lines]
        return [sent for sent in all_sent if sent.path.endswith(name) and sent.method == method]

    def _answers(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nginx() -> Iterator[Nginx]:
    folder = Path(tempfile.mkdtemp(prefix="edged-nginx-"))
    nginx = Nginx(folder)
    yield nginx
    nginx.stop()
    shutil.rmtree(folder)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "state")


def started(board: Board, nginx: Nginx, size: int = 1 << 20) -> subprocess.Popen[str]:
    """A pull of which `size` bytes of the weights have come."""
    process = board.start("pull", f"{nginx.url}/phi3/SHA256SUMS", "--json")
    part = board.part("phi3")

    def far_enough() -> bool:
        assert process.poll() is None, process.communicate()
        return part.exists() and part.stat().st_size >= size

    eventually(far_enough, "the pull does not get on")
    return process


def finished(process: subprocess.Popen[str]) -> dict[str, object]:
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return dict(json.loads(out))


def test_a_package_comes_whole(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www, pad=PAD)
    document = json.loads(board.run_apart("pull", f"{nginx.url}/phi3/SHA256SUMS", "--json").stdout)
    assert document["verified_at"]
    assert same_files(package, board.models / "phi3")
    (weights,) = nginx.sent(WEIGHTS)
    assert (weights.status, weights.bytes) == (200, (package / WEIGHTS).stat().st_size)


def test_a_connection_that_is_cut_goes_on_and_no_byte_is_sent_twice(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www, pad=PAD)
    process = started(board, nginx)
    nginx.kill_worker()
    assert finished(process)["verified_at"]
    assert same_files(package, board.models / "phi3")
    (second,) = nginx.sent(WEIGHTS)  # a killed worker writes no line for the first
    start, size = int(second.range.removeprefix("bytes=").removesuffix("-")), (package / WEIGHTS).stat().st_size
    assert second.status == 206
    assert start >= 1 << 20
    assert start + second.bytes == size
    assert second.if_range.startswith('"')


def test_killed_in_the_middle_it_goes_on_where_it_was(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www, pad=PAD)
    process = started(board, nginx)
    process.kill()
    process.communicate()
    assert not (board.models / "phi3").exists()
    have = board.part("phi3").stat().st_size
    first = eventually(lambda: nginx.sent(WEIGHTS), "nginx did not notice")[0]
    document = json.loads(board.run_apart("pull", f"{nginx.url}/phi3/SHA256SUMS", "--json").stdout)
    assert same_files(package, board.models / "phi3")
    second = nginx.sent(WEIGHTS)[1]
    size = (package / WEIGHTS).stat().st_size
    assert (second.status, second.range, second.bytes) == (206, f"bytes={have}-", size - have)
    assert first.bytes < size
    assert document["fetched_bytes"] <= sum(f.stat().st_size for f in package.iterdir()) - have


def test_a_file_that_changed_meanwhile_is_fetched_whole(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www, pad=PAD)
    process = started(board, nginx)
    process.kill()
    process.communicate()
    content = bytearray((package / WEIGHTS).read_bytes())
    content[-PAD:] = os.urandom(PAD)
    (package / WEIGHTS).write_bytes(content)
    os.utime(package / WEIGHTS, (1, 1))  # nginx makes its ETag of time and size
    write_sums(package)
    done = board.run_apart("pull", f"{nginx.url}/phi3/SHA256SUMS")
    assert done.returncode == 0, done.stderr
    assert same_files(package, board.models / "phi3")
    last = nginx.sent(WEIGHTS)[-1]
    assert (last.status, bool(last.range), last.bytes) == (200, True, len(content))


def test_a_wrong_checksum_is_refused_and_what_was_served_stays(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www)
    url = f"{nginx.url}/phi3/SHA256SUMS"
    board.succeed("pull", url)
    served = (board.models / "phi3" / WEIGHTS).read_bytes()
    (package / "README.md").write_text("second edition")
    write_sums(package)
    damaged = bytearray(served)
    damaged[1000] ^= 1
    (package / WEIGHTS).write_bytes(damaged)
    assert f"{WEIGHTS}: wrong checksum" in board.refused("pull", url)
    assert (board.models / "phi3" / WEIGHTS).read_bytes() == served
    (package / WEIGHTS).write_bytes(served)
    board.succeed("pull", url)
    assert (board.models / "phi3" / "README.md").exists()


def test_a_file_that_is_cut_at_the_server_is_refused(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www)
    with (package / WEIGHTS).open("r+b") as file:
        file.truncate(100_000)
    line = board.refused("pull", f"{nginx.url}/phi3/SHA256SUMS")
    assert f"{WEIGHTS}: wrong checksum" in line
    assert "damaged, cut or changed" in line
    assert not (board.models / "phi3").exists()


def test_of_two_pulls_at_once_the_second_says_so(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www, pad=PAD)
    first = started(board, nginx)
    done = board.run_apart("pull", f"{nginx.url}/phi3/SHA256SUMS", "--name", "other")
    assert refusal(done.returncode, done.stderr).startswith("edged: another edged model pull is running")
    assert finished(first)["verified_at"]
    assert same_files(package, board.models / "phi3")
    assert len(nginx.sent(WEIGHTS)) == 1


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """An ext4 of 400 MB, most of which exists only in its size."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="edged-disk-"))
    image, place = folder / "image", folder / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, place], check=False, capture_output=True).returncode:
        shutil.rmtree(folder)
        pytest.skip("this machine mounts no loop device")
    yield place
    subprocess.run(["umount", place], check=True)
    shutil.rmtree(folder)


def fill(place: Path, leave: int) -> Path:
    """A file that takes all of a disk but `leave` bytes."""
    filler = place / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(place).free - leave)
    return filler


def test_a_disk_that_has_no_room_is_told_before_the_first_byte(nginx: Nginx, small_disk: Path) -> None:
    publish(nginx.www)
    board = Board(small_disk / "state")
    filler = fill(small_disk, 200 << 20)
    line = board.refused("pull", f"{nginx.url}/phi3/SHA256SUMS")
    assert "256 MiB must stay free" in line
    assert {sent.path for sent in nginx.sent()} == {"/phi3/SHA256SUMS"}
    filler.unlink()
    board.succeed("pull", f"{nginx.url}/phi3/SHA256SUMS")


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_then_it_goes_on(nginx: Nginx, small_disk: Path) -> None:
    package = publish(nginx.www, pad=PAD)
    board = Board(small_disk / "state")
    process = started(board, nginx)
    filler = fill(small_disk, 1 << 20)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "the disk is full" in refusal(process.returncode, errors)
    have = board.part("phi3").stat().st_size
    filler.unlink()
    board.succeed("pull", f"{nginx.url}/phi3/SHA256SUMS")
    assert same_files(package, board.models / "phi3")
    assert nginx.sent(WEIGHTS)[-1].range == f"bytes={have}-"


@pytest.mark.parametrize(
    ("path", "said"),
    [("gone", "410 Gone"), ("private", "403 Forbidden"), ("broken", "500 Internal"), ("nowhere", "404 Not Found")],
)
def test_errors_of_the_server_are_one_line(board: Board, nginx: Nginx, path: str, said: str) -> None:
    assert f"the server answers {said}" in board.refused("pull", f"{nginx.url}/{path}/SHA256SUMS")


def test_a_certificate_that_nobody_vouches_for(board: Board, nginx: Nginx) -> None:
    package = publish(nginx.www)
    url = f"{nginx.tls_url}/phi3/SHA256SUMS"
    assert "certificate is not trusted: self-signed certificate" in board.refused("pull", url)
    assert nginx.sent() == []
    # The system's authorities: OpenSSL's own variable stands for update-ca-certificates here.
    assert ssl.get_default_verify_paths().openssl_cafile_env == "SSL_CERT_FILE"
    done = board.run_apart("pull", url, SSL_CERT_FILE=str(nginx.certificate))  # read once in a process
    assert done.returncode == 0, done.stderr
    assert same_files(package, board.models / "phi3")


def test_a_redirect_that_leaves_tls_is_not_followed(board: Board, nginx: Nginx) -> None:
    publish(nginx.www)
    done = board.run_apart("pull", f"{nginx.tls_url}/plain/SHA256SUMS", SSL_CERT_FILE=str(nginx.certificate))
    assert "redirects from https to http, which is not followed" in refusal(done.returncode, done.stderr)
    line = board.refused("pull", f"{nginx.url}/away/SHA256SUMS")
    assert "redirects from http to ftp, which is not followed" in line
