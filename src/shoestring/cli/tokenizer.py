"""`shoestring tokenizer train SOURCE`: a byte-level BPE tokenizer from your text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.files import atomic_folder

SourceArgument = Annotated[
    str,
    Parameter(
        help="stdlib (the running Python's own source), a file of text or rows, a folder, a glob, or hf:OWNER/NAME"
    ),
]
TextField = Annotated[str | None, Parameter(help="the field of a row that holds the text [text]")]
Validation = Annotated[
    float, Parameter(help="share of the documents held out, chosen by a hash of their names")
]
OnBadLine = Annotated[Literal["stop", "skip"], Parameter(help="text that cannot be read; skip counts it")]

app = verb(
    "tokenizer",
    "Train a tokenizer.",
    (
        "shoestring tokenizer train stdlib --out tokenizers/stdlib",
        "shoestring tokenizer train stdlib --vocabulary 1024 --out tokenizers/small",
    ),
)
_train = verb(
    "train",
    "Train a byte-level BPE tokenizer on the training split of a source.",
    (
        "shoestring tokenizer train stdlib --out tokenizers/stdlib",
        "shoestring tokenizer train stdlib --vocabulary 1024 --out tokenizers/small",
    ),
)
app.command(_train)


@_train.default
def train(
    source: SourceArgument,
    /,
    *,
    out: Annotated[Path, Parameter(help="a new folder, for tokenizer.json and tokenizer_config.json")],
    vocabulary: Annotated[int, Parameter(help="size, special tokens included")] = 4096,
    min_frequency: Annotated[int, Parameter(help="pairs seen less often are not merged")] = 2,
    text_field: TextField = None,
    validation: Validation = 0.05,
    on_bad_line: OnBadLine = "stop",
    json: Json = False,
) -> None:
    from shoestring.data.sources import Skipped, Source
    from shoestring.data.train_tokenizer import train_tokenizer

    skipped = Skipped()
    with atomic_folder(out) as folder:
        documents = Source(source, text_field, validation, on_bad_line).documents(skipped)
        texts = (document.text for document in documents if document.split == "train")
        tokenizer = train_tokenizer(texts, vocabulary, min_frequency)
        tokenizer.save(folder)
    if skipped.counts:
        console.say(f"left out: {skipped}")
    if json:
        result = {
            "folder": str(out),
            "vocabulary": tokenizer.vocabulary_size,
            "fingerprint": tokenizer.fingerprint(),
        }
        console.print_json(result | {"left_out": skipped.counts})
    else:
        console.out.print(f"tokenizer  {out}  {tokenizer.vocabulary_size:,} tokens")
