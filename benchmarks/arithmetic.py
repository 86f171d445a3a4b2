"""What fine-tuning can do in minutes: SmolLM2-135M-Instruct learns to add and subtract, and stays a conversationalist.

    python -m benchmarks.arithmetic [--quick] [--minutes 12] [--method lora] [--general 0]

LoRA on synthetic one- and two-digit addition and subtraction in chat form; test problems are held out by a hash of the
unordered problem. Counted as right: the last whole number of a greedy answer is the result. General chat is measured by
perplexity on the conversations in benchmarks/conversations.jsonl, written for this test, on the assistant's words.
--general N mixes in N answers that the base model itself gives to everyday questions that are not in that file.
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

from benchmarks.measure import finish, run_worker, show

CONVERSATIONS = Path(__file__).parent / "conversations.jsonl"
_THINGS = ("bread", "the moon", "a bicycle", "rain", "a library", "coffee", "friendship", "a garden", "winter", "music")
_ASKS = (
    "Explain {} in two sentences.", "Write a short poem about {}.", "Why do people like {}?",
    "Give me three facts about {}.", "Tell me a short story with {} in it.", "What should a child know about {}?",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute of training and 40 questions: coarse")
    parser.add_argument("--minutes", type=float, default=12.0, help="wall clock of training")
    parser.add_argument("--method", choices=("lora", "dora", "qlora", "full"), default="lora")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--general", type=int, default=0, help="of the base model's own answers, mixed in")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
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
        _exercises(folder, arguments.questions)
        common = ["--folder", text, "--questions", str(arguments.questions)]
        before = run_worker("benchmarks.arithmetic", "--worker", "measure", "--model", arguments.model, *common)
        print("measured before", file=sys.stderr, flush=True)
        run = run_worker(
            "benchmarks.arithmetic", "--worker", "train", "--model", arguments.model, *common,
            "--minutes", str(arguments.minutes), "--method", arguments.method, "--general", str(arguments.general),
            "--learning-rate", str(arguments.learning_rate),
        )  # fmt: skip
        print("trained", file=sys.stderr, flush=True)
        after = run_worker("benchmarks.arithmetic", "--worker", "measure", "--model", run["model"], *common)
    _report(before, run, after, arguments)


def _exercises(folder: Path, questions: int) -> None:
    from shoestring.data.synthetic.exercise import write
    from shoestring.data.synthetic.kinds import make

    write(make("arithmetic", 12_000, 1, 0.1, digits=2, operations=["add", "subtract"], stories=0.0), folder / "sums")


def _train(arguments: argparse.Namespace) -> dict:
    import shoestring

    folder = arguments.folder
    file = folder / "learn.jsonl"
    lines = (folder / "sums" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    started = time.perf_counter()
    if arguments.general:
        lines += _own_answers(arguments.model, arguments.general)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    spent = time.perf_counter() - started
    result = shoestring.finetune(
        arguments.model,
        file,
        out=str(folder / "run"),
        overrides={
            "adapter.method": arguments.method,
            "train.time": f"{60 * arguments.minutes - spent:.0f}s",
            "optimizer.learning_rate": arguments.learning_rate,
            "train.evaluate_examples": 64,
            "train.answers": 3,
        },
    )
    return {
        "model": str(result.model),
        "steps": result.steps,
        "tokens": result.tokens,
        "minutes": (result.seconds + spent) / 60,
        "peak": result.peak_memory,
        "loss": [result.loss_before, result.loss_after],
    }


def _own_answers(model: str, count: int) -> list[str]:
    """The base model's greedy answers to everyday questions: rehearsing them keeps it as it was."""
    from shoestring.generate.language_model import LanguageModel

    language = LanguageModel.load(model)
    asked = [ask.format(thing) for thing in _THINGS for ask in _ASKS][:count]
    rows = []
    for first in range(0, len(asked), 16):
        some = asked[first : first + 16]
        prompts = [language.encode_chat([{"role": "user", "content": question}]) for question in some]
        for question, reply in zip(some, language.complete_ids(prompts, temperature=0.0, max_tokens=64), strict=True):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply.text}]
            rows.append(json.dumps({"messages": turns}))
    return rows


def _measure(model: str, folder: Path, questions: int) -> dict:
    """Share of exact answers, and perplexity on the conversations."""
    from shoestring.finetune.accuracy import accuracy, ask
    from shoestring.finetune.batches import SupervisedPass
    from shoestring.finetune.supervise import prepare_dataset
    from shoestring.generate.language_model import LanguageModel
    from shoestring.train.evaluation import measure

    language = LanguageModel.load(model)
    rows = [json.loads(line) for line in (folder / "sums" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    replies = ask(language, [(row["messages"][0]["content"], row["answer"]) for row in rows[:questions]])
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
        }
    )


if __name__ == "__main__":
    main()
