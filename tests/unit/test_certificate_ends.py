"""When certificates end: openssl makes them, and says itself when."""

from __future__ import annotations

import calendar
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from edged.certificates import EVERY, Certificates, not_after
from edged.settings import Settings

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def make(folder: Path, name: str = "cert", days: int = 30, *more: str) -> Path:
    file = folder / f"{name}.pem"
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    line += ["-days", str(days), "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", file, *more]
    subprocess.run(line, check=True, capture_output=True)
    return file


def by_openssl(file: Path) -> float:
    line = ["openssl", "x509", "-in", file, "-noout", "-enddate"]
    text = subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip().partition("=")[2]
    return calendar.timegm(time.strptime(text, "%b %d %H:%M:%S %Y %Z"))


@pytest.mark.parametrize("days", [1, 365, 3650, 36500])
def test_the_end_is_the_one_that_openssl_reads(tmp_path: Path, days: int) -> None:
    """36,500 days from now are beyond 2049, where the form of the time is another one."""
    assert not_after(make(tmp_path, days=days)) == by_openssl(tmp_path / "cert.pem")


def test_a_long_subject_and_a_chain_change_nothing(tmp_path: Path) -> None:
    first = make(tmp_path, "first", 10, "-addext", "subjectAltName=" + ",".join(f"DNS:{n}.example" for n in range(200)))
    chain = tmp_path / "chain.pem"
    chain.write_text("bag attributes\n" + first.read_text() + make(tmp_path, "second", 99).read_text())
    assert not_after(chain) == by_openssl(first)


def test_comments_of_any_encoding_may_stand_before_it(tmp_path: Path) -> None:
    file = tmp_path / "latin.pem"
    file.write_bytes("# Gerät im Büro\n".encode("latin-1") + make(tmp_path).read_bytes())
    assert not_after(file) == by_openssl(tmp_path / "cert.pem")


def test_what_is_no_certificate_has_no_end(tmp_path: Path) -> None:
    good = make(tmp_path).read_text()
    lines = good.splitlines(keepends=True)
    for text in (
        "",
        "x",
        (tmp_path / "cert.key").read_text(),
        lines[0] + lines[1] + lines[-1],
        lines[0] + "AAAA\n" + lines[-1],
    ):
        (tmp_path / "bad.pem").write_text(text)
        assert not_after(tmp_path / "bad.pem") is None
    assert not_after(tmp_path / "nowhere.pem") is None
    (tmp_path / "bytes.pem").write_bytes(b"\xff" * 100)
    assert not_after(tmp_path / "bytes.pem") is None


def test_the_files_are_looked_at_now_and_then(tmp_path: Path) -> None:
    now = [0.0]
    file = make(tmp_path, days=10)
    settings = Settings(mqtt={"tls": True, "cert_file": file, "key_file": tmp_path / "cert.key"})
    certificates = Certificates(settings, now=lambda: now[0])
    before = certificates.ends()
    assert before == {"mqtt": by_openssl(file)}
    make(tmp_path, days=99)
    assert certificates.ends() == before
    now[0] += EVERY
    assert certificates.ends() == {"mqtt": by_openssl(file)} != before


def test_without_certificates_there_are_no_ends() -> None:
    assert Certificates(Settings()).ends() == {}
