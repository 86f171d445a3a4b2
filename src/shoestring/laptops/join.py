"""`shoestring.join(ADDRESS, TOKEN)`: this machine's memory and cores for a run on another one."""

from __future__ import annotations

import re
from pathlib import Path

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import parse_bytes
from shoestring.core.waiting import waiting
from shoestring.laptops.config import NAME, parse_address
from shoestring.laptops.handshake import check_token
from shoestring.laptops.joining import Joiner
from shoestring.laptops.process import call


def join(
    address: str, token: str, name: str, memory: str | int | None = None, model: str | Path | None = None
) -> str:
    """Work for the run at `address` ("192.168.1.10:29400") until it is over; -> what the first machine says then.

    token: as the first machine shows it. name: of this machine in its machines.yaml. memory: of the whole process at
    most, as "3GB". model: a folder or a name with the same model, from which its tensors are taken where they are the
    same. Raises ConfigError, NetworkError where the first machine is not reached or refuses this one, and
    KeyboardInterrupt once the run is saved because someone pressed Ctrl-C here.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name!r} is no name for a machine: letters, digits, . _ and -", hint="give --name")
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    token = check_token(token)
    try:
        where = parse_address(address)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    own = None
    if model is not None:
        from shoestring.models.resolve import find_model

        own = find_model(model, say=console.say)
    with waiting("measuring this machine"):
        machine = call("shoestring.laptops.describe", {})
    why = Joiner(where, token, name, size, machine, console.say, own).run()
    return f"over      {why}"
