"""Addresses of the machine, as /proc has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.machine.addresses import addresses
from edged.machine.board import detect
from edged.report.documents import info_document
from edged.settings import Settings
from edged.status import Status

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.0.0/24 2 0 2
        |-- 10.0.0.0
           /24 link UNICAST
        |-- 10.0.0.7
           /32 host LOCAL
        |-- 10.0.0.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
Local:
        |-- 10.0.0.7
           /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000dea632fffe010203 02 40 20 80     eth0
fd000000000000000000000000000007 02 40 00 80     eth0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    net = tmp_path / "proc/net"
    net.mkdir(parents=True)
    (net / "fib_trie").write_text(FIB_TRIE)
    (net / "if_inet6").write_text(IF_INET6)
    return tmp_path


def test_those_that_others_may_reach(root: Path) -> None:
    assert addresses(root) == ["10.0.0.7", "fd00::7"]


def test_without_proc_there_are_none(tmp_path: Path) -> None:
    assert addresses(tmp_path) == []


def test_info_has_them_where_the_setting_says_so(root: Path) -> None:
    board = detect(root)
    told = info_document("a", Settings(device={"addresses": True}), board, Status())
    assert told["addresses"] == ["10.0.0.7", "fd00::7"]
    assert info_document("a", Settings(), board, Status())["addresses"] is None


def test_info_has_the_serial_number_and_the_kernel(root: Path) -> None:
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/serial-number").write_bytes(b"10000000abcdef01\0")
    told = info_document("a", Settings(), detect(root), Status())
    assert told["board"]["serial"] == "10000000abcdef01"
    assert told["versions"]["kernel"]
