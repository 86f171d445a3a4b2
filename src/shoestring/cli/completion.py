"""`shoestring completion SHELL`: the script with which a shell completes verbs and flags, made by cyclopts."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import verb
from shoestring.cli.verbs import VERBS
from shoestring.core import console

app = verb(
    "completion",
    "Print the script with which a shell completes verbs, flags and files at the tab key.",
    ("shoestring completion bash", "shoestring completion fish"),
)
# What a person does with it.
_USE = {
    "bash": 'into ~/.bashrc:  eval "$(shoestring completion bash)"',
    "zsh": 'into ~/.zshrc, behind compinit:  eval "$(shoestring completion zsh)"',
    "fish": "into ~/.config/fish/config.fish:  shoestring completion fish | source",
}


@app.default
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="whose script")], /) -> None:
    root = verb("shoestring", "Language models on a shoestring.")
    for row in VERBS:
        root.command(importlib.import_module(row.module_name).app)
    print(root.generate_completion(shell=shell))
    if sys.stdout.isatty():
        console.err.print(_USE[shell])
