"""What fine-tuning can do in minutes: SmolLM2-135M-Instruct learns to add and subtract, and stays a conversationalist.

    python -m benchmarks.arithmetic [--quick] [--minutes 14 | --steps 230] [--method lora] [--no-preserve]

LoRA on synthetic one- and two-digit addition and subtraction in chat form; test problems are held out by a hash of the
unordered problem. Counted as right: the last whole number of a greedy answer is the result. General chat is measured by
perplexity on the conversations in benchmarks/conversations.jsonl, written for this test, on the assistant's words.

The time goes where it teaches: several sums in a question and several questions in a conversation (SmolLM2's template
spends 39 of 50 tokens around a single sum), subtraction twice as often as addition because it is learned last, no
held-out loss on the way. Every second step also holds the model's predictions near the base's on what the base says to
everyday questions (`preserve.source everyday`), none of which is in the file above. That needs an adapter: not full.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import finish, run_worker, show

CONVERSATIONS = Path(__file__).parent / "conversations.jsonl"
_TURNS, _LISTS = 3, 0.6
_AROUND = 40  # seconds for loading, everyday answers and saving
SETTINGS = {
    "data.validation": 0.0,
    "train.answers": 0,
    "data.layout": "padded",
    "train.sequence_length": 512,
    "train.batch_tokens": 512,  # one conversation, of 200 tokens in the mean: many small steps
    "schedule.final": 0.05,
    "preserve.tokens": 96,
    "preserve.every": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute of training and 40 questions: coarse")
    parser.add_argument("--minutes", type=float, default=14.0, help="wall clock of training and of what goes before it")
    parser.add_argument("--steps", type=int, help="train so many steps instead, however long they take")
    parser.add_argument("--method", choices=("lora", "dora", "qlora", "full"), default="lora")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--preserve", action=argparse.BooleanOptionalAction, default=True, help="ordinary predictions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--compute", choices=("float32", "bfloat16", "int8"), default="int8",
        help="of matrix products; int8: frozen weights in integers, two to three times as many steps",
    )  # fmt: skip
    parser.add_argument("--worker", choices=("train", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.questions = 1.0, 40
    if arguments.worker == "train":
        print(json.dumps(_train(arguments)))
        return
    if arguments.worker == "measure":
        print(json.dumps(_measure(arguments.model, arguments.folder, arguments.questions)))
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        _exercises(folder)
        common = ["--folder", text, "--questions", str(arguments.questions)]
        before = run_worker("benchmarks.arithmetic", "--worker", "measure", "--model", arguments.model, *common)
        print("measured before", file=sys.stderr, flush=True)
        run = run_worker(
            "benchmarks.arithmetic", "--worker", "train", "--model", arguments.model, *common,
            "--minutes", str(arguments.minutes), "--method", arguments.method,
            "--preserve" if arguments.preserve else "--no-preserve",
            "--learning-rate", str(arguments.learning_rate), "--compute", arguments.compute,
            *(["--steps", str(arguments.steps)] if arguments.steps else []),
        )  # fmt: skip
        print("trained", file=sys.stderr, flush=True)
        after = run_worker("benchmarks.arithmetic", "--worker", "measure", "--model", run["model"], *common)
    _report(before, run, after, arguments)


def _exercises(folder: Path) -> None:
    """folder/sums: what is learned, and single questions to test. The split is the same for all settings."""
    from shoestring.data.synthetic.exercise import ExerciseSet, write
    from shoestring.data.synthetic.kinds import make

    plain = make("arithmetic", 12_000, 1, 0.1, digits=2, operations=["add", "subtract"], stories=0.0)
    operations = ["add", "subtract", "subtract"]
    learned = make("arithmetic", 12_000, 2, 0.1, digits=2, operations=operations, stories=0.0, lists=_LISTS)
    write(ExerciseSet(learned.train, plain.test), folder / "sums", _TURNS)


def _train(arguments: argparse.Namespace) -> dict:
    import shoestring

    folder = arguments.folder
    started = time.perf_counter()
    length: dict[str, Any] = {"train.time": f"{60 * arguments.minutes - _AROUND:.0f}s"}
    if arguments.steps:
        length = {"train.steps": arguments.steps}
    result = shoestring.finetune(
        arguments.model,
        folder / "sums" / "train.jsonl",
        out=str(folder / "run"),
        overrides={
            **SETTINGS,
            **length,
            "preserve.source": "everyday" if arguments.preserve and arguments.method != "full" else None,
            "adapter.method": arguments.method,
            "precision.compute": arguments.compute,
            "optimizer.learning_rate": arguments.learning_rate,
        },
    )
    return {
        "model": str(result.model),
        "steps": result.steps,
        "tokens": result.tokens,
        "minutes": (time.perf_counter() - started) / 60,
        "peak": result.peak_memory,
    }


def _rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _measure(model: str, folder: Path, questions: int) -> dict:
    """Share of exact answers, and perplexity on the conversations."""
    from shoestring.data.supervised.batches import SupervisedPass
    from shoestring.evaluate.exact_match import accuracy, ask
    from shoestring.finetuning.examples import prepare_dataset
    from shoestring.generate.language_model import LanguageModel
    from shoestring.train.evaluation import measure

    language = LanguageModel.load(model)
    rows = _rows(folder / "sums" / "test.jsonl")[:questions]
    replies = ask(language, [(row["messages"][0]["content"], row["answer"]) for row in rows])
    samples = [[reply.question, reply.text] for reply in replies[:4]]
    # The base's tokenizer and template serve its adapters too.
    dataset = prepare_dataset(CONVERSATIONS, language.tokenizer, 1024, validation=0.0)
    loss = measure(language.decoder, SupervisedPass(dataset, "train", 1024)).loss
    exact = accuracy(replies)
    return {"exact": exact, "questions": len(replies), "perplexity": math.exp(loss), "samples": samples}


def _report(before: dict, run: dict, after: dict, arguments: argparse.Namespace) -> None:
    def row(name: str, values: dict) -> Sequence[str]:
        return [name, f"{values['exact']:.1%}", f"{values['perplexity']:.3f}"]

    show(
        f"{arguments.model}, {arguments.method}, {run['steps']} steps, {run['tokens']:,} tokens, {run['minutes']:.1f} "
        f"min; {before['questions']} held-out problems",
        ["", "exact", "chat perplexity"],
        [row("before", before), row("after", after)],
    )
    for (question, old), (_, new) in zip(before["samples"], after["samples"], strict=True):
        print(f"Q: {question}\n  before: {old[:100]!r}\n  after:  {new[:100]!r}")
    finish(
        {
            "before": before["exact"],
            "after": after["exact"],
            "minutes": run["minutes"],
            "chat_perplexity_ratio": after["perplexity"] / before["perplexity"],
            "peak_mb": run["peak"] / 1e6,
            "steps": run["steps"],
            "tokens": run["tokens"],
        }
    )


if __name__ == "__main__":
    main()
