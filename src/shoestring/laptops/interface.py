"""Which network interface has an address: gloo is told an interface, and binds to what that one has. Standard library.

Linux and macOS answer the same question of a socket (SIOCGIFADDR); IPv6 addresses stand in /proc on Linux. Windows has
no names that gloo would take.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

from shoestring.core.errors import ConfigError

_SIOCGIFADDR = 0x8915 if sys.platform == "linux" else 0xC0206921
_IF_INET6 = Path("/proc/net/if_inet6")


def interface_of(address: str) -> str | None:
    """Its name; None on Windows. Raises ConfigError for an address that no interface has as its first."""
    if sys.platform == "win32":
        return None
    wanted = ipaddress.ip_address(address.partition("%")[0])
    found = _sixth(wanted) if wanted.version == 6 else _fourth(wanted)
    if found is None:
        raise ConfigError(
            f"no network interface has {address} as its address",
            hint="name the first address that `ip address` or `ifconfig` shows of the interface",
        )
    return found


def _fourth(wanted: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == str(wanted):
                return name
    return "lo" if wanted.is_loopback and sys.platform == "linux" else "lo0" if wanted.is_loopback else None


def _sixth(wanted: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    try:
        lines = _IF_INET6.read_text().splitlines()
    except OSError:
        return "lo0" if wanted.is_loopback else None
    for line in lines:
        digits, *_, name = line.split()
        if int(digits, 16) == int(wanted):
            return name
    return None
