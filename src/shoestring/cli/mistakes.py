"""What is wrong with a command line, in our words: what was typed, what was meant, where to look."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from shoestring.core.errors import ConfigError

if TYPE_CHECKING:
    from cyclopts import App


def unknown_verb(name: str, names: list[str]) -> ConfigError:
    """The nearest verb, or what another tool's verb is here."""
    from shoestring.cli.other_names import OTHER_VERBS

    hint = OTHER_VERBS.get(name.lower())
    if hint is None and (close := difflib.get_close_matches(name, names, 1, 0.7)):
        hint = f"did you mean {close[0]}?"
    lines = [*([hint] if hint else []), "shoestring --help lists the verbs"]
    return ConfigError(f"unknown verb {name}", hint="\n".join(lines))


def subcommand(command: App, chain: tuple[str, ...], rest: list[str]) -> ConfigError:
    """One is missing or unknown."""
    names = [name for name in command if not name.startswith("-")]
    usage = " ".join(["shoestring", *chain])
    if not rest:
        return ConfigError(f"{usage} needs one of: {', '.join(names)}", hint=f"{usage} --help shows what they do")
    close = difflib.get_close_matches(rest[0], names, 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
    return ConfigError(f"{usage} has no {rest[0]}", hint=hint)


def unknown_flag(name: str, chain: tuple[str, ...], flags: dict[str, bool], takes_settings: bool) -> ConfigError:
    """A flag that another tool has, or a slip in one of the command's own."""
    from shoestring.cli.other_names import flag_hint

    hint = flag_hint(name, chain, flags, takes_settings)
    if hint is None:
        close = difflib.get_close_matches(name, [flag for flag in flags if flag.startswith("--")], 1)
        hint = f"did you mean {close[0]}?" if close else None
    lines = [*([hint] if hint else []), _where(chain)]
    return ConfigError(f"unknown flag {name} (command line)", hint="\n".join(lines))


def explained(
    error: Any, chain: tuple[str, ...], rest: list[str], flags: dict[str, bool], takes_settings: bool
) -> ConfigError:
    """A parser's error: the usual three in our words, any other by its first sentence, with its guess as a hint.

    rest: what was typed behind `chain`. A flag that does not exist is told before one that is missing.
    """
    usage = " ".join(["shoestring", *chain])
    if (unknown := _first_unknown(rest, flags)) is not None:
        return unknown_flag(unknown, chain, flags, takes_settings)
    match type(error).__name__:
        case "MissingArgumentError" if error.argument is not None:
            argument = error.argument
            choices = argument.get_choices() or ()
            hint = f"it is one of: {', '.join(choices)}\n" if choices else ""
            typed = error.keyword or next((token.keyword for token in argument.tokens if token.keyword), None)
            sentence = f"{usage} needs {argument.name}" if typed is None else f"{typed} needs a value (command line)"
            return ConfigError(sentence, hint=hint + _where(chain))
        case "UnusedCliTokensError" if error.unused_tokens:
            sentence = f"{usage} does not know what to do with: {' '.join(error.unused_tokens)}"
            return ConfigError(sentence, hint=_where(chain))
    sentence, _, guess = str(error).strip().splitlines()[0].rstrip(".").partition(". Did you mean ")
    hint = f"did you mean {guess}\n" if guess else ""
    return ConfigError(f"{sentence[:1].lower()}{sentence[1:]} (command line)", hint=hint + _where(chain))


def _first_unknown(tokens: list[str], flags: dict[str, bool]) -> str | None:
    """The first of these that looks like a flag and is none; a value is not looked at."""
    position = 0
    while position < len(tokens) and tokens[position] != "--":
        name, equals, _ = tokens[position].partition("=")
        if name in flags:
            position += flags[name] and not equals
        elif name[:1] == "-" and name[1:2].strip("0123456789."):
            return name
        position += 1
    return None


def _where(chain: tuple[str, ...]) -> str:
    return f"shoestring {' '.join(chain)} --help shows what it takes"
