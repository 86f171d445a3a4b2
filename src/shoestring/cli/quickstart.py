"""`shoestring quickstart`: the whole way once, in a few minutes, with a report of where everything is.

Each part prints a heading and what it found, and returns what `--json` tells; the rooms do the work. Only
the model of others may be missing: then a sentence says so, and the rest still stands.
"""

from __future__ import annotations

import shutil
import sys
import time as clock
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from shoestring.cli.quickstart_finetune import finetune
from shoestring.cli.quickstart_finetune import settings as finetune_settings
from shoestring.cli.verb import Json, verb
from shoestring.core import console
from shoestring.core.errors import ShoestringError
from shoestring.core.units import format_bytes, format_count, format_seconds
from shoestring.pretraining.config import load_pretrain_recipe

app = verb(
    "quickstart",
    "Train a small model on Python's own source, see what it learned; ask a real one a question, teach it sums.",
    ("shoestring quickstart", "shoestring quickstart --time 1m --out runs/first"),
)

TEMPERATURE = 0.5  # a model of two minutes: higher, its names fall apart; lower, it repeats itself
INSTRUCT_MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
SUM = "47 + 38 = ?"


@app.default
def quickstart(
    *,
    out: Annotated[str | None, Parameter(help="the run's folder [runs/RECIPE-N]")] = None,
    time: Annotated[str | None, Parameter(help="how long to train [as the recipe says: 2m]")] = None,
    recipe: Annotated[str, Parameter(help="what to train: a built-in recipe or a YAML file")] = "quickstart",
    model: Annotated[str, Parameter(help="who is asked a question, and fine-tuned")] = INSTRUCT_MODEL,
    finetune_time: Annotated[str, Parameter(help="how long to fine-tune")] = "2m",
    problems: Annotated[int, Parameter(help="sums that are asked before and after")] = 100,
    json: Json = False,
) -> None:
    started = clock.perf_counter()
    settings = {key: value for key, value in (("out", out), ("train.time", time)) if value is not None}
    load_pretrain_recipe(recipe, settings)  # a mistake is reported before torch is imported
    finetune_settings(finetune_time)
    report = Report(silent=json)
    training = report.results["training"] = pretrain(recipe, settings, report)
    report.results["sample"] = sample(training, report)
    asked = report.results["chat"] = chat(model, report)
    if "folder" in asked:
        run = Path(training["out"])
        report.results["finetuning"] = finetune(asked["folder"], run, finetune_time, problems, report)

    from shoestring.core.machine import peak_rss_bytes

    finetuning = report.results.get("finetuning", {"peak_memory": 0})
    report.results |= {
        "seconds": round(clock.perf_counter() - started, 1),
        "peak_memory": max(peak_rss_bytes(), finetuning["peak_memory"]),
    }
    if json:
        console.print_json(report.results)
    else:
        closing(report.results, report)


class Report:
    """What the parts say, numbered headings included (nothing under --json), and what they found."""

    def __init__(self, silent: bool):
        self.silent, self.parts, self.results = silent, 0, {}

    def heading(self, text: str) -> None:
        self.parts += 1
        self.say(f"\n{self.parts}. {text}\n", style="bold")

    def say(self, text: Any = "", style: str | None = None) -> None:
        if not self.silent:
            if isinstance(text, str) and console.out.is_terminal:
                text = console.fold(text, console.out.width)
            console.out.print(text, style=style)

    def quote(self, text: str) -> None:
        """A model's text, indented, without what could steer the terminal."""
        from shoestring.generate.text import without_controls

        for line in without_controls(text).splitlines():
            self.say(f"    {line}")


def pretrain(recipe: str, settings: dict[str, Any], report: Report) -> dict[str, Any]:
    """Train, then show the curve and the comparison with xz."""
    from shoestring.pretraining.job import pretrain as train
    from shoestring.train.metrics_file import read_metrics
    from shoestring.train.plot import text_plot

    report.heading("Training a small model, from nothing, on the source of Python's standard library")
    result = train(recipe, overrides=settings)
    losses = [line["loss"] for line in read_metrics(result.out / "metrics.jsonl") if "loss" in line]
    report.say(f"\ntraining loss in nats per token, {format_count(result.tokens)} tokens in all\n")
    report.say(text_plot(losses, width=64, height=10, name=f"step 1 to {result.steps:,}"))
    if result.bits_per_byte is not None:
        rows = [("this model", result.bits_per_byte * result.held_out_bytes / 8, result.bits_per_byte)]
        if result.xz_bytes is not None and result.xz_bits_per_byte is not None:
            rows.append(("xz -9e", result.xz_bytes, result.xz_bits_per_byte))
        cells = [(name, f"{size:,.0f}", f"{bits:.3f}") for name, size, bits in rows]
        size = f"{result.held_out_bytes:,} bytes"
        report.say(f"\n{size} of documents that it was not trained on, each compressed by itself:\n")
        columns = ("", "bytes", "bits per byte")
        report.say(console.table(columns, cells, right=columns[1:]))
        report.say("\nThe model has read other Python files before, xz has not; its bytes are what an arithmetic")
        report.say("coder would write with its predictions.")
    return result.to_json()


def sample(training: dict[str, Any], report: Report) -> dict[str, Any]:
    """How the model just trained goes on with the first lines of a function that it has not seen."""
    from shoestring.generate.language_model import LanguageModel
    from shoestring.pretraining.dataset import open_corpus
    from shoestring.pretraining.example_prompt import function_lines

    corpus = open_corpus(load_pretrain_recipe(Path(training["out"]) / "recipe.yaml").data)
    begun = function_lines(corpus)
    prompt = training["prompt"] if begun is None else begun
    report.heading("What it writes now" if begun is None else "How it goes on with a function that it has not seen")
    text = LanguageModel.load(training["out"]).generate(prompt, max_tokens=120, temperature=TEMPERATURE)
    report.quote(prompt + text)
    return {"prompt": prompt, "text": text}


def chat(model: str, report: Report) -> dict[str, Any]:
    """One question to an instruct model, in its own chat template; it may have to be fetched first."""
    from shoestring.generate.language_model import LanguageModel
    from shoestring.models.resolve import find_model

    report.heading(
        "Asking a model that was trained on two trillion tokens: SmolLM2-135M-Instruct"
        if model == INSTRUCT_MODEL
        else f"Asking {model}"
    )
    try:
        folder = find_model(model, say=console.say)
    except ShoestringError as error:
        report.say(f"It could not be fetched, so nobody is asked or taught: {error.message}.")
        return {"model": model, "error": str(error)}
    answer = LanguageModel.load(folder).chat(QUESTION, temperature=0, max_tokens=60)
    report.quote(f"> {QUESTION}\n{answer}")
    return {"model": model, "folder": str(folder), "question": QUESTION, "answer": answer}


def closing(results: dict[str, Any], report: Report) -> None:
    """Where everything is, and what to try next, as commands that work where they are read."""
    training, chat, finetuning = results["training"], results["chat"], results.get("finetuning")
    run, me = training["out"], _command()
    report.heading("Done")
    memory = format_bytes(results["peak_memory"])
    report.say(f"{format_seconds(results['seconds'])} in all, {memory} of memory at most\n")
    places = [
        ("model", f"{run}/latest", "a Hugging Face folder: transformers reads it too"),
        ("plot", training["plot"], ""),
        ("metrics", f"{run}/metrics.jsonl", "one line of JSON a step"),
        ("recipe", f"{run}/recipe.yaml", "every setting of this run"),
    ]
    if "folder" in chat:
        places.append((Path(chat["model"]).name, chat["folder"], ""))
    if finetuning is not None:
        places.append(("adapter", finetuning["model"], "a PEFT folder, for the model above"))
        places.append(("exercises", f"{run}/exercises", "what it learned, and what it was asked"))
    first = max(len(name) for name, _, _ in places)
    width = max(len(str(place)) for _, place, _ in places)
    for name, place, note in places:
        report.say(f"{name:<{first}}  {place!s:<{width}}  {note}".rstrip())
    report.say("\ntry next", style="bold")
    lines = [f'{me} generate {run} --prompt "{training["prompt"]}"']
    if finetuning is None:
        lines.append(f"{me} get {chat['model']}")
    else:
        adapter = finetuning["model"]
        lines += [f"{me} chat {chat['model']}", f'{me} chat {adapter} --prompt "{SUM}"', f"{me} merge {adapter}"]
        lines.append(f"{me} finetune {chat['model']} --data FILE_OF_YOUR_EXAMPLES")
    lines += [
        f"{me} pretrain quickstart --time 10m",
        f"{me} pretrain quickstart --data.source FOLDER_OF_YOUR_TEXT",
    ]
    for line in lines:
        report.say(f"  {line}")


def _command() -> str:
    """How `shoestring` is called from here: a fresh .venv is not on the PATH."""
    if shutil.which("shoestring"):
        return "shoestring"
    beside = shutil.which("shoestring", path=str(Path(sys.executable).parent))
    if beside is None:
        return f"{Path(sys.executable).name} -m shoestring"
    here = Path.cwd()
    return str(Path(beside).relative_to(here) if Path(beside).is_relative_to(here) else beside)
