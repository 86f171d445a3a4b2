"""Recipe settings on the command line: `shoestring VERB [RECIPE] [--dotted.key value ...]`.

A flag that the verb itself does not have is a setting of the recipe, as `--key value` or `--key=value`;
hyphens in it count as underscores. Whether the setting exists is the recipe's to say, since it knows the
whole tree and can name the nearest.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping

from shoestring.core.errors import ConfigError


def split_overrides(
    tokens: list[str], flags: Mapping[str, bool], elsewhere: Callable[[str], str | None] = lambda name: None
) -> tuple[list[str], dict[str, str]]:
    """Separate the verb's own arguments from settings: (own arguments, dotted key -> value as typed).

    flags: the verb's own flags, each with whether it takes a value. elsewhere: what a flag that
    other tools have is here, None for other words. Everything after a lone `--` is the verb's. Raises ConfigError for a
    setting without a value, one given twice, another tool's flag, or what looks like a misspelt flag of the verb.
    """
    own: list[str] = []
    overrides: dict[str, str] = {}
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        name, equals, value = token.partition("=")
        if token == "--":
            own += tokens[position - 1 :]
            break
        if name in flags or not token.startswith("--"):
            own.append(token)
            if flags.get(name, False) and not equals and position < len(tokens):
                own.append(tokens[position])
                position += 1
            continue
        key = name.removeprefix("--").replace("-", "_")
        if "." not in key and not _is_setting(key) and (hint := elsewhere(name) or _misspelt(name, flags)):
            raise ConfigError(f"unknown flag {name} (command line)", hint=hint)
        if not equals:
            if position == len(tokens) or tokens[position].startswith("--"):
                raise ConfigError(f"{name} needs a value (command line)", hint=f"write {name} VALUE")
            value = tokens[position]
            position += 1
        if key in overrides:
            raise ConfigError(f"{name} is given twice (command line)")
        overrides[key] = value
    return own, overrides


def _is_setting(key: str) -> bool:
    from shoestring.train.recipe import RunRecipe  # not for `shoestring --help`: it needs the parser of recipes

    return key in RunRecipe.model_fields


def _misspelt(name: str, flags: Collection[str]) -> str | None:
    close = difflib.get_close_matches(name, [flag for flag in flags if flag.startswith("--")], 1, 0.8)
    return f"did you mean {close[0]}?" if close else None
