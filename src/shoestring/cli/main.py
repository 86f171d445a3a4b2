"""The command line: finds the verb, imports its module, parses its flags, and turns errors into sentences.

Exit codes: 0 done, 2 an error of the user's with a sentence on stderr, 130 interrupted, 141 the reader of our
output left. Anything else is a traceback, and a bug of ours. Nothing heavy is imported before the verb is
known: the overview needs no parser, and a recipe's mistake is found without torch.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import shutil
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from shoestring.cli.overrides import split_overrides
from shoestring.cli.verbs import VERBS, overview
from shoestring.core import console, interrupt
from shoestring.core.errors import ConfigError, ShoestringError
from shoestring.core.given import COMMAND, GIVEN

if TYPE_CHECKING:
    from cyclopts import App

INTERRUPTED, BROKEN_PIPE = interrupt.EXIT_CODE, 141
_AFTER_THE_FIRST = 2.0  # seconds: when one rank ends, its launcher ends the others, and the first has most to say


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code."""
    tokens = sys.argv[1:] if arguments is None else list(arguments)
    here, command = GIVEN.set("(command line)"), COMMAND.set(tokens)
    try:
        with console.safe_streams(), _outliving_terminal(tokens), interrupt.listening(to_the_end=arguments is None):
            try:
                return _answer(tokens)
            except BrokenPipeError:
                return BROKEN_PIPE
    finally:
        GIVEN.reset(here)
        COMMAND.reset(command)


def _answer(tokens: list[str]) -> int:
    try:
        code = _run(tokens)
        sys.stdout.flush()
        return code
    except ShoestringError as error:
        # A run that Ctrl-C ended has saved itself and says where: no error, but no success either.
        if not error.silent:
            _complain(str(error) if error.exit_code == INTERRUPTED else f"error: {error}")
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_AFTER_THE_FIRST)
        return error.exit_code
    except KeyboardInterrupt:
        interrupt.answered()
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except BaseException as error:
        sentence = _last_resort(error)
        if sentence is None:
            raise
        _complain(f"error: {sentence}")
        return ConfigError.exit_code


def _last_resort(error: BaseException) -> str | None:
    """What the machine refused, wherever that was; None for all else, which is a bug of ours."""
    from shoestring.core.units import format_bytes

    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error))):
        size = re.search(r"allocate (\d+) bytes", str(error))
        return f"there is not enough memory{f' for {format_bytes(int(size[1]))} more' if size else ''}"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply"
    if type(error).__name__ == "PanicException":
        return f"the tokenizer cannot be used: {said}"
    return None


_NO_MEMORY = "can't allocate memory|[Oo]ut of memory|Cannot allocate memory|bad_alloc|can't start new thread"


@contextlib.contextmanager
def _outliving_terminal(tokens: list[str]) -> Iterator[None]:
    """What takes hours goes on when its terminal is closed; its progress then goes nowhere (`core.console`)."""
    long = bool(tokens) and tokens[0] in ("pretrain", "finetune", "join", "distill", "prepare", "quickstart", "search")
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if not long or hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(hangup, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(hangup, before)


def _run(tokens: list[str]) -> int:
    """-> the exit code: 0, or that of the processes that did the work."""
    for token in tokens:
        try:
            token.encode()
        except UnicodeEncodeError:  # it would have to stand in recipes, configs and plots
            raise ConfigError(f"{ascii(token)} is not UTF-8 text (command line)", hint="rename it") from None
    if tokens[:1] == ["help"]:  # `help VERB` is `VERB --help`
        tokens = [*tokens[1:], "--help"]
    if not tokens or tokens[0] in ("--help", "-h"):
        print(overview())
        return 0
    if tokens[0] in ("--version", "-V", "version"):
        from shoestring import __version__

        print(f"shoestring {__version__}")
        return 0
    names = [verb.name for verb in VERBS]
    if tokens[0] not in names:
        from shoestring.cli.mistakes import unknown_verb

        raise unknown_verb(tokens[0], names)
    verb = next(verb for verb in VERBS if verb.name == tokens[0])
    return run_verb(importlib.import_module(verb.module_name).app, tokens) or 0


def run_verb(verb_app: App, tokens: list[str]) -> Any:
    """Parse a command line that begins with the verb and call its function, or print its help."""
    from shoestring.cli.verb import verb

    app = verb("shoestring", "")
    app.command(verb_app)
    if "--help" in tokens or "-h" in tokens:
        from shoestring.cli.help import page

        chain, apps, _ = app.parse_commands([token for token in tokens if token not in ("--help", "-h")])
        print(page(apps[-1], chain))
        return None
    function, arguments, settings = parse(app, tokens)
    return function(*arguments.args, **arguments.kwargs, **settings)


def parse(app: App, tokens: list[str]) -> tuple[Callable[..., Any], inspect.BoundArguments, dict[str, Any]]:
    """The function that `tokens` ask for, its arguments, and `{"overrides": ...}` if it takes settings."""
    from cyclopts import CycloptsError

    from shoestring.cli import mistakes
    from shoestring.cli.other_names import flag_hint

    chain, apps, rest = app.parse_commands(tokens)
    command = apps[-1]
    function = command.default_command
    settings: dict[str, Any] = {}
    if function is None:
        raise mistakes.subcommand(command, chain, rest)
    flags = _flags(command)
    rest, takes_settings = list(rest), "overrides" in inspect.signature(function).parameters
    if takes_settings:
        own, settings["overrides"] = split_overrides(
            rest, flags, lambda name: flag_hint(name, chain, flags, takes_settings=True)
        )
        tokens, rest = [*chain, *own], own
    try:
        function, arguments, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise mistakes.explained(error, chain, rest, flags, takes_settings) from None
    return function, arguments, settings


def _flags(command: App) -> dict[str, bool]:
    """The command's own flags: name -> whether a value follows. `--no-x` forms take none."""
    flags = {"--help": False, "-h": False}
    for argument in command.assemble_argument_collection():
        if argument.parse:
            switch = bool in (argument.hint, *typing.get_args(argument.hint))  # or left out: `bool | None`
            takes_value = argument.token_count()[0] > 0 and not switch
            negatives = set(argument.negatives)
            flags |= {
                name: takes_value and name not in negatives for name in argument.names if name.startswith("-")
            }
            flags |= dict.fromkeys(negatives, False)
    return flags


def _complain(text: str) -> None:
    with contextlib.suppress(BrokenPipeError, ShoestringError):
        sys.stdout.flush()
    if sys.stderr.isatty():
        text = console.fold(text, shutil.get_terminal_size().columns)
    print(text, file=sys.stderr, flush=True)
