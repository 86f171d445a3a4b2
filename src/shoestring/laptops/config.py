"""Which machines share a model: `machines.yaml`, and the address on which the first of them listens. Torch-free.

    listen: 192.168.1.10:29400    # the one address of this machine that the others reach
    wait: 10m
    machines:
      - {name: desk, memory: 6GB} # the first is this machine
      - {name: anna, memory: 3GB}
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from shoestring.core.config import Config, load_config
from shoestring.core.errors import ConfigError
from shoestring.core.units import Bytes, Seconds
from shoestring.core.yaml_document import YamlDocument

PORT = 29400
MOST_MACHINES = 16
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"


class MachineConfig(Config):
    """One machine."""

    name: str = Field(pattern=NAME, description="what `shoestring join --name` says there; the first is this machine")
    memory: Bytes | None = Field(
        None, description="of its whole process at most, as 3GB; null: what `shoestring join --memory` says there"
    )
    layers: int | None = Field(None, gt=0, description="of the model that it holds; null: as the plan splits them")


class MachinesConfig(Config):
    """Read by `shoestring finetune --over`."""

    listen: str = Field(
        f"127.0.0.1:{PORT}", description="HOST:PORT, the one address of this machine that the others reach"
    )
    wait: Seconds = Field(600.0, description="how long to wait for a machine that is not there yet, or has left")
    machines: tuple[MachineConfig, ...] = Field(min_length=2, max_length=MOST_MACHINES)

    @model_validator(mode="after")
    def _distinct(self) -> MachinesConfig:
        names = [machine.name for machine in self.machines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"machines: two have the name {name}")
        given = [machine.layers is not None for machine in self.machines]
        if any(given) and not all(given):
            raise ValueError("machines: give layers of every machine, or of none, and the plan splits them")
        if self.wait < 1:
            raise ValueError("wait: give at least a second")
        parse_address(self.listen)
        return self


class Address(NamedTuple):
    """host: a name or number of one machine."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """HOST, HOST:PORT or [IPV6]:PORT. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?", text.strip())
    port = int(match[3]) if match and match[3] else PORT
    if match is None or not port <= 65535:
        raise ValueError(f"expected an address such as 192.168.1.10:{PORT}, found {text!r}")
    return Address(match[1] or match[2], port)


def one_address(address: Address) -> Address:
    """The address that is bound, by its number. Raises ConfigError for all addresses at once, and for none of ours."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise ConfigError(
            f"listen: {address.host} is no address: {error.strerror or error}",
            hint="give the address of this machine that the others reach",
        ) from None
    number = str(found[0])
    if ipaddress.ip_address(number.partition("%")[0]).is_unspecified:
        raise ConfigError(
            f"listen: {number} is every address of this machine, also those of networks that you do not trust",
            hint="name the one address that the others reach",
        )
    return Address(number, address.port)


def is_loopback(address: Address) -> bool:
    """Whether nobody but this machine reaches it."""
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def load_machines(
    machines: str | Path | MachinesConfig, listen: str | None = None, wait: str | None = None
) -> MachinesConfig:
    """machines.yaml, with what flags say instead. Raises ConfigError with file and line."""
    given = {name: value for name, value in {"listen": listen, "wait": wait}.items() if value is not None}
    if isinstance(machines, MachinesConfig):
        return load_config(MachinesConfig, YamlDocument(machines.model_dump(mode="json"), name="machines"), given)
    return load_config(MachinesConfig, machines, given)
