"""`shoestring data show FILE`: what a model would learn from it. `shoestring data stats SOURCE`: what a corpus holds.
`shoestring data make KIND`: exercises to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.data_stats import app as _stats
from shoestring.cli.verb import Json, verb
from shoestring.core import console

_SHOW = "shoestring data show sums/train.jsonl --model smollm2-135m -n 1"
_MAKE = "shoestring data make arithmetic --n 2000 --seed 1 --out sums"

app = verb(
    "data",
    "Look at training examples as a model learns them, count what a corpus holds, and make exercises.",
    (_MAKE, _SHOW),
)
_show = verb(
    "show",
    "Print examples as the model reads them, with the tokens that are learned marked and counted.",
    (_SHOW, f"{_SHOW} --supervise last --json"),
)
_make = verb(
    "make",
    "Write synthetic exercises with their answers, train and test apart, as chat messages.",
    (_MAKE, "shoestring data make comparisons --n 500"),
)
app.command(_show)
app.command(_stats)
app.command(_make)


@_show.default
def show(
    source: Annotated[
        str, Parameter(help="a .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, or hf:OWNER/NAME")
    ],
    /,
    *,
    model: Annotated[str, Parameter(help="the MODEL whose tokenizer and chat template to use")],
    n: Annotated[int, Parameter(name=["-n", "--n"], help="examples to print")] = 3,
    format: Annotated[
        Literal["auto", "messages", "sharegpt", "alpaca", "prompt", "text"],
        Parameter(help="the form of the rows; auto tells it from the first ones"),
    ] = "auto",
    template: Annotated[
        str, Parameter(help="a chat template's .jinja file; none joins prompt and completion as they are")
    ] = "auto",
    columns: Columns = None,
    special_tokens: Annotated[
        Literal["read", "text"],
        Parameter(help="their names in text rows, and where prompt and completion are joined as they are"),
    ] = "read",
    supervise: Annotated[
        Literal["assistant", "last", "all"], Parameter(help="what is learned: the assistant's turns, the last, or all")
    ] = "assistant",
    system: Annotated[str | None, Parameter(help="system message for conversations that have none")] = None,
    sequence_length: Annotated[int | None, Parameter(help="longer examples are cut [the model's context]")] = None,
    on_bad_line: Annotated[Literal["stop", "skip"], Parameter(help="rows that cannot be used; skip counts")] = "stop",
    json: Json = False,
) -> None:
    from shoestring.data.supervised.show import example_json, example_text, has_letters, header_line, note_lines
    from shoestring.finetuning.examples import prepare_dataset

    dataset = prepare_dataset(
        source,
        model,
        sequence_length,
        console.say,
        format=format,
        columns=columns_of(columns),
        special_tokens=special_tokens,
        template=template,
        supervise=supervise,
        system=system,
        on_bad_line=on_bad_line,
    )
    shown = range(min(max(n, 0), len(dataset)))
    if json:
        console.print_json({**dataset.header(), "shown": [example_json(dataset, index) for index in shown]})
        return
    for line in (header_line(dataset), *note_lines(dataset)):
        console.show(line)
    for index in shown:
        note = " (supervised tokens in bold, between ‹ ›)" if index == 0 else ""
        if has_letters(dataset, index):
            note += " (\\ stands before a special token's name that is only text)"
        console.out.print(f"example {index + 1}{note}")
        console.out.print(example_text(dataset, index))


@_make.default
def make(
    kind: Annotated[
        Literal[
            "arithmetic", "patterns", "comparisons", "format", "code", "sums", "annotated", "instructions",
            "functions", "structure", "letters", "conversation",
        ],
        Parameter(help="what is exercised"),
    ],
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--n"], help="exercises, train and test together")] = 20_000,
    seed: Annotated[int, Parameter(help="another seed gives other exercises, split in the same way")] = 1,
    out: Annotated[Path | None, Parameter(help="a new folder for train.jsonl and test.jsonl [KIND]")] = None,
    test: Annotated[float, Parameter(help="share held out, by a hash of the unordered problem")] = 0.1,
    digits: Annotated[int | None, Parameter(help="arithmetic: digits of an operand, at most [2]")] = None,
    operations: Annotated[
        str | None, Parameter(help="arithmetic: of add, subtract, multiply, with commas [add,subtract]")
    ] = None,
    stories: Annotated[float | None, Parameter(help="arithmetic: share of problems in words [0.1]")] = None,
    negative: Annotated[bool, Parameter(help="arithmetic: differences below zero too")] = False,
    lists: Annotated[float | None, Parameter(help="arithmetic: share that asks for several sums [0]")] = None,
    turns: Annotated[int, Parameter(help="exercises of one conversation to train on")] = 1,
    json: Json = False,
) -> None:
    from shoestring.data.synthetic.exercise import write
    from shoestring.data.synthetic.kinds import make as make_exercises

    chosen = operations.split(",") if operations is not None else None
    settings = {
        "digits": digits, "operations": chosen, "stories": stories, "negative": negative or None, "lists": lists,
    }  # fmt: skip
    settings = {name: value for name, value in settings.items() if value is not None}
    exercises = make_exercises(kind, n, seed, test, **settings)
    folder = write(exercises, out or Path(kind), turns)
    result = {"folder": str(folder), "kind": kind, "train": len(exercises.train), "test": len(exercises.test)}
    if json:
        console.print_json(result | {"repeated": exercises.repeated})
        return
    repeated = f" ({exercises.repeated:,} of them repeated: there are no more)" if exercises.repeated else ""
    console.show(f"train  {folder / 'train.jsonl'}  {len(exercises.train):,}{repeated}")
    console.show(f"test   {folder / 'test.jsonl'}  {len(exercises.test):,}")
    for exercise in exercises.train[:3]:
        console.show(f"Q: {exercise.question}\nA: {exercise.answer}")
