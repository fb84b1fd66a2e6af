"""The machine's IP addresses, from /proc."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from edged.machine.board.generic import read

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")
_MOST = 16
"""Addresses that are told."""


def addresses(root: Path = Path("/")) -> list[str]:
    """The IPv4 and IPv6 addresses of this machine that others may reach: neither loopback nor link-local ones.

    `root`: where /proc is. Empty where nothing can be read.
    """
    four = _LOCAL.findall(read(root / "proc/net/fib_trie") or "")
    six = [line.split()[0] for line in (read(root / "proc/net/if_inet6") or "").splitlines() if line.strip()]
    found = [*map(ipaddress.ip_address, four), *(ipaddress.IPv6Address(bytes.fromhex(digits)) for digits in six)]
    told = (str(one) for one in found if not (one.is_loopback or one.is_link_local))
    return list(dict.fromkeys(told))[:_MOST]
