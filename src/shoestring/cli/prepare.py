"""`shoestring prepare SOURCE`: documents to memory-mappable token shards, resumed if it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoestring.cli.tokenizer import OnBadLine, SourceArgument, TextField, Validation
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.units import format_bytes, format_count, parse_count

app = verb(
    "prepare",
    "Turn documents into token shards that training maps into memory.",
    (
        "shoestring prepare stdlib --out shards/stdlib --vocabulary 4096",
        "shoestring prepare fineweb-edu --tokens 2.5B --tokenizer smollm2-135m --out shards/fineweb-edu",
    ),
)


@app.default
def prepare(
    source: SourceArgument,
    /,
    *,
    out: Annotated[Path, Parameter(help="the folder of shards; the same command continues what was begun there")],
    tokenizer: Annotated[str | None, Parameter(help="a tokenizer folder, or a MODEL whose tokenizer to use")] = None,
    vocabulary: Annotated[int | None, Parameter(help="without --tokenizer: train one of this size")] = None,
    tokens: Annotated[str | None, Parameter(help="to train on, such as 2.5B; the rest of the source is left")] = None,
    max_documents: Annotated[int | None, Parameter(help="to keep; the rest of the source is left")] = None,
    text_field: TextField = None,
    validation: Validation = 0.05,
    on_bad_line: OnBadLine = "stop",
    filters: Annotated[
        str | None, Parameter(help="leave out what breaks the rules of gopher, fineweb, or both: gopher,fineweb")
    ] = None,
    near_duplicates: Annotated[
        bool, Parameter(help="leave out what is much like an earlier document, by MinHash")
    ] = False,
    keep_duplicates: Annotated[bool, Parameter(help="keep documents that are equal to an earlier one")] = False,
    compress: Annotated[bool, Parameter(help="compress shards with zstd, in blocks that are read one by one")] = False,
    shard_tokens: Annotated[int, Parameter(help="tokens in a shard file, at least")] = 2**26,
    workers: Annotated[int | None, Parameter(help="threads that encode [all cores]; the bytes are the same")] = None,
    nodes: Annotated[
        int | None, Parameter(help="encode in so many processes of datatrove's local executor: as a cluster would")
    ] = None,
    json: Json = False,
) -> None:
    if (tokenizer is None) == (vocabulary is None):
        raise ConfigError("give either --tokenizer FOLDER or --vocabulary N (command line)")
    from shoestring.data.config import NewTokenizerConfig
    from shoestring.data.prepare import Settings
    from shoestring.data.prepare import prepare as write_shards
    from shoestring.data.quality.config import QualityConfig
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.named_tokenizer import named_tokenizer

    chosen: NewTokenizerConfig | Tokenizer
    if tokenizer is not None:
        chosen, _ = named_tokenizer(tokenizer, console.say)
    else:
        chosen = NewTokenizerConfig(vocabulary=vocabulary or 0)
    quality = QualityConfig(exact_duplicates=not keep_duplicates, near_duplicates=near_duplicates, **_filters(filters))
    most = None if tokens is None else parse_count(tokens)
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"--max-documents: expected 1 or more, found {max_documents} (command line)")
    settings = Settings(shard_tokens, most, compress, quality, workers, max_documents)
    if nodes is None:
        shards = write_shards(source, chosen, out, text_field, validation, on_bad_line, settings)
    else:
        from shoestring.data.preparation.nodes import prepare_on_nodes

        if not isinstance(chosen, Tokenizer):
            raise ConfigError("--nodes wants --tokenizer: every node needs it from the beginning (command line)")
        shards = prepare_on_nodes(source, chosen, out, nodes, text_field, validation, on_bad_line, settings)
    splits = {
        split: {
            "documents": shards.document_count(split),
            "tokens": shards.token_count(split),
            "bytes": shards.byte_count(split),
        }
        for split in ("train", "validation")
    }
    if json:
        left_out = shards.index["skipped"]
        console.print_json(
            {"folder": str(out), "vocabulary": shards.vocabulary_size, "splits": splits, "left_out": left_out}
        )
        return
    rows = [
        (split, f"{found['documents']:,}", format_count(found["tokens"]), format_bytes(found["bytes"]))
        for split, found in splits.items()
    ]
    columns = ("split", "documents", "tokens", "text")
    console.out.print(console.table(columns, rows, right=columns[1:]))
    console.out.print(f"shards  {out}  vocabulary {shards.vocabulary_size:,}")


def _filters(names: str | None) -> dict[str, bool]:
    """Their settings."""
    chosen = {"gopher": ("gopher_quality", "gopher_repetition"), "fineweb": ("fineweb",)}
    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in given:
        if name not in chosen:
            raise ConfigError(f"no filter {name!r} (command line)", hint="the filters are gopher and fineweb")
    return {setting: True for name in given for setting in chosen[name]}
