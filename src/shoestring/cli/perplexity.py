"""`shoestring perplexity MODEL --data FILE`: how surprised a model is by text or conversations."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from shoestring.cli.columns import Columns, columns_of
from shoestring.cli.decoding import WEIGHTS_HELP, checked_weights
from shoestring.cli.over import Listen, OverMachines, Token, Wait, run_over
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ConfigError

app = verb(
    "perplexity",
    "How surprised a model is by text, per token and per byte; of conversations, by what the assistant says.",
    (
        "shoestring perplexity smollm2-135m --data README.md",
        "shoestring perplexity smollm2-135m --data sums/test.jsonl --examples 50 --json",
    ),
)


@app.default
def perplexity(
    model: Annotated[str, Parameter(help="a model folder, a run, a .gguf file, or a name that get knows")],
    /,
    *,
    data: Annotated[
        str, Parameter(help="a text, a folder, stdlib, or rows (.jsonl, .json, .csv, .parquet), also conversations")
    ],
    context: Annotated[
        int | None, Parameter(help="tokens that the model sees at most [2048, or what it can]")
    ] = None,
    stride: Annotated[
        int | None, Parameter(help="tokens between the windows of a long text; smaller is exacter [half the context]")
    ] = None,
    examples: Annotated[int | None, Parameter(help="only so many texts or rows [all]")] = None,
    memory: Annotated[
        str | None, Parameter(help="the whole process at most, as 2GB; layers stream from disk if they must")
    ] = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:N or mps")] = "auto",
    dtype: Annotated[str, Parameter(help="auto (float32), float32, bfloat16 or float16")] = "auto",
    weights: Annotated[str | None, Parameter(help=WEIGHTS_HELP)] = None,
    columns: Columns = None,
    on_bad_line: Annotated[Literal["stop", "skip"], Parameter(help="rows that cannot be used; skip counts")] = "stop",
    over: OverMachines = None,
    listen: Listen = None,
    wait: Wait = None,
    token: Token = None,
    json: Json = False,
) -> None:
    given = over, listen, wait, token
    if given != (None,) * 4:
        if (memory, device, dtype, weights) != (None, "auto", "auto", None):
            raise ConfigError("over several machines, each keeps its layers as the files have them (command line)")
        from shoestring.laptops.scoring import perplexity_over

        asked = {"context": context, "stride": stride, "examples": examples, "on_bad_line": on_bad_line}
        run_over(perplexity_over, given, json, model, data, columns=columns_of(columns), **asked)
        return
    kept = checked_weights(weights, device, dtype, memory)

    from shoestring.evaluate.perplexity import check_windows
    from shoestring.evaluate.perplexity import perplexity as measure
    from shoestring.offload.load import load

    named = columns_of(columns)
    check_windows(context, stride, examples)  # before a model is loaded
    language = load(model, device, dtype, memory, kept, say=console.say, scoring=True)
    result = measure(
        language, data, context, stride, examples, on_bad_line=on_bad_line, say=console.say, columns=named
    )
    if json:
        console.print_json(result.to_json())
    else:
        console.show(result)
