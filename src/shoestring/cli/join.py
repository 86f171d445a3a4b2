"""`shoestring join HOST:PORT`: hold some layers of a model that is trained on several machines."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.verb import verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import parse_bytes

app = verb(
    "join",
    "Hold some layers of a model that is trained on several machines: for as long as the first one, or you, want.",
    (
        "shoestring join 192.168.1.10:29400 --memory 3GB",
        "shoestring join 127.0.0.1:29400 --name anna --memory 3GB --model smollm2-135m",
    ),
)


@app.default
def join(
    address: Annotated[str, Parameter(help="HOST:PORT, as the first machine shows it")],
    /,
    *,
    memory: Annotated[str | None, Parameter(help="of the whole process at most, as 3GB [what the run says]")] = None,
    name: Annotated[str | None, Parameter(help="of this machine in the run [its host name]")] = None,
    token: Annotated[
        str | None, Parameter(help="what the first machine shows; others on this machine see flags [asked for]")
    ] = None,
    model: Annotated[
        str | None, Parameter(help="a folder or name (hf:OWNER/NAME) of the same model, whose tensors are taken first")
    ] = None,
) -> None:
    from shoestring.laptops.config import parse_address
    from shoestring.laptops.join import join as work

    try:
        parse_address(address)
    except ValueError as error:
        raise ConfigError(f"{error} (command line)") from None
    size = None if memory is None else parse_bytes(memory)
    named = socket.gethostname().split(".")[0] if name is None else name
    console.show(work(address, _token(token), named, size, model))


def _token(given: str | None) -> str:
    """From the flag, the environment, or whoever sits here."""
    if given is not None:
        return given
    if found := os.environ.get("SHOESTRING_TOKEN"):
        return found
    if not sys.stdin.isatty():
        line = sys.stdin.readline().strip()
        if line:
            return line
        raise ConfigError(
            "there is nobody to ask for the token", hint="set SHOESTRING_TOKEN, or write it to the command's input"
        )
    from getpass import getpass

    return getpass("token     ", stream=sys.stderr).strip()
