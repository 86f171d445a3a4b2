"""`shoestring data stats SOURCE`: how much a source or a folder of shards holds, and what is worth keeping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

if TYPE_CHECKING:
    from shoestring.data.quality.config import QualityConfig
    from shoestring.data.stats.corpus import Statistics

app = verb(
    "stats",
    "Count documents and tokens by source, lengths, duplicates and what filters would leave out, and padding.",
    (
        "shoestring data stats stdlib --tokenizer smollm2-135m --filters gopher,fineweb",
        "shoestring data stats shards/stdlib --sequence-length 2048 --plot lengths.png",
    ),
)
_FILTERS = {
    "gopher": ("gopher_quality", "gopher_repetition"),
    "gopher-quality": ("gopher_quality",),
    "gopher-repetition": ("gopher_repetition",),
    "fineweb": ("fineweb",),
    "near-duplicates": ("near_duplicates",),
}


@app.default
def stats(
    source: Annotated[
        list[str],
        Parameter(help="text as prepare takes it, or a folder that prepare wrote; several are counted apart as well"),
    ],
    /,
    *,
    tokenizer: Annotated[
        str | None, Parameter(help="a tokenizer folder, or a MODEL's; without it text is counted in bytes")
    ] = None,
    sequence_length: Annotated[int | None, Parameter(help="tokens of a row, for padding and cuts [1024]")] = None,
    filters: Annotated[
        str | None, Parameter(help=f"count what they would leave out, with commas: {', '.join(_FILTERS)}")
    ] = None,
    plot: Annotated[Path | None, Parameter(help="a .png for the histogram of lengths")] = None,
    text_field: Annotated[str | None, Parameter(help="the field of a row that holds the text")] = None,
    on_bad_line: Annotated[
        Literal["stop", "skip"] | None, Parameter(help="text that cannot be read; skip counts it [stop]")
    ] = None,
    json: Json = False,
) -> None:
    quality = _quality(filters)
    if sequence_length is not None and sequence_length < 2:
        raise ConfigError("--sequence-length must be at least 2 (command line)")
    if plot is not None and plot.suffix.lower() != ".png":
        raise ConfigError("--plot writes a .png (command line)")
    if len({*source}) < len(source):
        raise ConfigError("a SOURCE is given twice (command line)")
    found = _found(source, tokenizer, sequence_length, quality, text_field, on_bad_line)
    from shoestring.data.stats.show import histogram_table, lines, parts_table, write_histogram

    if plot is not None:
        write_histogram(found, plot, ", ".join(source))
    if json:
        console.print_json({"sources": source, **found.figures(), "plot": plot})
        return
    console.out.print(parts_table(found))
    console.out.print()
    console.out.print(histogram_table(found))
    console.out.print()
    for line in lines(found):
        console.show(line)
    if plot is not None:
        console.show(f"plot        {plot}")
    if found.unit == "bytes":
        console.show("note: without --tokenizer lengths are in bytes, and rows are not counted")


def _found(
    sources: list[str],
    tokenizer: str | None,
    sequence_length: int | None,
    quality: QualityConfig,
    text_field: str | None,
    on_bad_line: Literal["stop", "skip"] | None,
) -> Statistics:
    from shoestring.data.shards import ShardFolder, is_shard_folder
    from shoestring.data.sources import Source
    from shoestring.data.stats.corpus import shard_statistics, text_statistics
    from shoestring.models.named_tokenizer import named_tokenizer

    length = sequence_length or 1024
    prepared = [is_shard_folder(source) for source in sources]
    if all(prepared):
        unused = {"tokenizer": tokenizer, "text-field": text_field, "on-bad-line": on_bad_line}
        for name, value in unused.items():
            if value is not None:
                raise ConfigError(f"--{name} is for text, and {sources[0]} holds shards (command line)")
        return shard_statistics({source: ShardFolder(source) for source in sources}, length, quality)
    if any(prepared):
        raise ConfigError("give either texts or folders of shards, not both (command line)")
    if tokenizer is None and sequence_length is not None:
        raise ConfigError("--sequence-length counts tokens: give --tokenizer too (command line)")
    named = {} if text_field is None else {"text_field": text_field}
    opened = {
        source: Source(source, validation=0.0, on_bad_line=on_bad_line or "stop", **named) for source in sources
    }
    chosen = None if tokenizer is None else named_tokenizer(tokenizer, console.say)[0]
    return text_statistics(opened, chosen, length, quality)


def _quality(filters: str | None) -> QualityConfig:
    from shoestring.data.quality.config import QualityConfig

    chosen = [name.strip() for name in filters.split(",")] if filters else []
    for name in chosen:
        if name not in _FILTERS:
            raise ConfigError(f"--filters {name}: there are {', '.join(_FILTERS)} (command line)")
    return QualityConfig(**{setting: True for name in chosen for setting in _FILTERS[name]})
