"""`shoestring prepare SOURCE`: documents to memory-mappable token shards, resumed if it was killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.tokenizer import OnBadLine, SourceArgument, TextField, Validation
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import format_bytes, format_count

app = verb(
    "prepare",
    "Turn documents into token shards that training maps into memory.",
    (
        "shoestring prepare stdlib --out shards/stdlib --vocabulary 4096",
        "shoestring prepare stdlib --out shards/smollm2 --tokenizer smollm2-135m",
    ),
)


@app.default
def prepare(
    source: SourceArgument,
    /,
    *,
    out: Annotated[
        Path, Parameter(help="the folder of shards; the same command continues what was begun there")
    ],
    tokenizer: Annotated[
        str | None, Parameter(help="a tokenizer folder, or a MODEL whose tokenizer to use")
    ] = None,
    vocabulary: Annotated[int | None, Parameter(help="without --tokenizer: train one of this size")] = None,
    text_field: TextField = "text",
    validation: Validation = 0.05,
    on_bad_line: OnBadLine = "stop",
    shard_tokens: Annotated[int, Parameter(help="tokens in a shard file, at least")] = 2**26,
    json: Json = False,
) -> None:
    if (tokenizer is None) == (vocabulary is None):
        raise ConfigError("give either --tokenizer FOLDER or --vocabulary N (command line)")
    from shoestring.data.config import NewTokenizerConfig
    from shoestring.data.prepare import prepare as write_shards

    chosen = _tokenizer(tokenizer) if tokenizer else NewTokenizerConfig(vocabulary=vocabulary or 0)
    shards = write_shards(
        source,
        chosen,
        out,
        text_field=text_field,
        validation=validation,
        on_bad_line=on_bad_line,
        shard_tokens=shard_tokens,
    )
    splits = {
        split: {
            "documents": shards.document_count(split),
            "tokens": shards.token_count(split),
            "bytes": shards.byte_count(split),
        }
        for split in ("train", "validation")
    }
    if json:
        console.print_json({"folder": str(out), "vocabulary": shards.vocabulary_size, "splits": splits})
        return
    rows = [
        (split, f"{found['documents']:,}", format_count(found["tokens"]), format_bytes(found["bytes"]))
        for split, found in splits.items()
    ]
    columns = ("split", "documents", "tokens", "text")
    console.out.print(console.table(columns, rows, right=columns[1:]))
    console.out.print(f"shards  {out}  vocabulary {shards.vocabulary_size:,}")


def _tokenizer(name: str):
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.resolve import find_model

    folder = (
        Path(name) if os.path.isfile(Path(name) / "tokenizer.json") else find_model(name, say=console.err.print)
    )
    return Tokenizer.load(folder)
