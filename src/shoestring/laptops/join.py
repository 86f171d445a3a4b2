"""`shoestring.join(ADDRESS, TOKEN)`: this machine's memory and cores for a run on another one."""

from __future__ import annotations

import re
from pathlib import Path

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import parse_bytes
from shoestring.core.waiting import waiting
from shoestring.laptops.config import NAME, parse_address
from shoestring.laptops.fetch import Read, from_folder, from_hub
from shoestring.laptops.handshake import check_token
from shoestring.laptops.joining import Joiner
from shoestring.laptops.process import call
from shoestring.laptops.survey import MODEL


def join(
    address: str, token: str, name: str, memory: str | int | None = None, model: str | Path | None = None
) -> str:
    """Work for the run at `address` ("192.168.1.10:29400") until it is over; -> what the first machine says then.

    token: as the first machine shows it. name: of this machine in its machines.yaml. memory: of the whole process at
    most, as "3GB". model: a folder or a name with the same model, from which its tensors are taken where they are the
    same; of hf:OWNER/NAME only those are fetched that this machine will hold. Raises ConfigError, NetworkError where
    the first machine is not reached or refuses this one, and KeyboardInterrupt once the run is saved because someone
    pressed Ctrl-C here.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"{name!r} is no name for a machine: letters, digits, . _ and -", hint="give --name")
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    token = check_token(token)
    try:
        where = parse_address(address)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    sources = () if model is None else (source_of(model),)
    with waiting("measuring this machine"):
        machine = call("shoestring.laptops.describe", {})
    why = Joiner(where, token, name, size, machine, console.say, sources).run()
    return f"over      {why}"


def source_of(model: str | Path) -> Read:
    """From where pieces of a model are read that is here, or on the hub: of that only the pieces are fetched."""
    from shoestring.models.get import cached, hub_parts
    from shoestring.models.resolve import find_model

    name = str(model)
    if name.startswith("hf:") and cached(name) is None:
        return from_hub(*hub_parts(name.removeprefix("hf:")), MODEL)
    return from_folder(find_model(model, say=console.say), MODEL)
