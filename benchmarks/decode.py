"""Decoding and reading prompts beside llama.cpp, on the same files: SmolLM2-135M and the shape of Qwen2.5-0.5B.

    python -m benchmarks.decode --llama-python PYTHON [--cases q4_1,q8_0,f32,0.5b] [--rounds N] [--quick]

PYTHON: an interpreter that has llama-cpp-python, best built from source with native flags; this one if it is not given.
Each side is a process that holds its model and answers in turn: a prompt of 16 tokens and 128 greedy ones after it, and
one of 512. The table shows medians of rounds. The limit of memory is the bytes of all weights over the bandwidth that
is measured in the same run; the limit of products is our kernels on one row with nothing besides. Transformers' float32
and bfloat16 stand beside. Last line: ratios of ours to llama.cpp's, on the same file and on its fastest 4-bit one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import ROOT, finish, show

PROMPT, NEW, LONG = 16, 128, 512
_PROBE = "import llama_cpp; print(llama_cpp.__version__)"


class Side(NamedTuple):
    """One process: who answers, from what. weights: ours, or the number format of transformers."""

    name: str
    who: str
    model: str
    weights: str = ""


class Case(NamedTuple):
    """The first side is ours; those after it are compared with it. vocabulary: token ids of prompts are below it."""

    name: str
    vocabulary: int
    sides: list[Side]


def llama_python(given: str | None) -> str:
    """An interpreter that can import llama_cpp. Exits with a sentence where there is none."""
    python = given or sys.executable
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"error: {python} cannot be started: {error}") from None
    if done.returncode:
        raise SystemExit(
            f"error: {python} has no llama_cpp to compare with (pip install llama-cpp-python, built with native flags,"
            " in an environment of its own; then --llama-python THAT/bin/python)"
        )
    return python


def cases(names: Sequence[str]) -> list[Case]:
    """The files are made when they are not there yet."""
    from benchmarks.gguf_models import in_format, random_model
    from shoestring.models.get import get, gguf_file

    found: list[Case] = []
    if any(name != "0.5b" for name in names):
        folder, file = str(get("smollm2-135m")), gguf_file("smollm2-135m")
        assert file is not None
    if "q4_1" in names:
        sides = [
            Side("shoestring, the file's Q4_1", "shoestring", str(file), "file"),
            Side("llama.cpp Q4_1", "llama", str(file)),
            Side("llama.cpp Q4_0", "llama", str(in_format(file, "Q4_0"))),
            Side("shoestring, int4", "shoestring", folder, "int4"),
        ]
        found.append(Case("q4_1", 49_152, sides))
    if "q8_0" in names:
        eight = str(in_format(file, "Q8_0"))
        sides = [
            Side("shoestring, the file's Q8_0", "shoestring", eight, "file"),
            Side("llama.cpp Q8_0", "llama", eight),
            Side("shoestring, int8", "shoestring", folder, "int8"),
        ]
        found.append(Case("q8_0", 49_152, sides))
    if "f32" in names:
        sides = [
            Side("shoestring, float32", "shoestring", folder, "float32"),
            Side("llama.cpp F32", "llama", str(in_format(file, "F32"))),
            Side("transformers float32", "transformers", folder, "float32"),
            Side("transformers bfloat16", "transformers", folder, "bfloat16"),
        ]
        found.append(Case("f32", 49_152, sides))
    if "0.5b" in names:
        four = str(random_model("qwen2.5-0.5b", "Q4_0"))
        sides = [Side("shoestring, the file's Q4_0", "shoestring", four, "file"), Side("llama.cpp Q4_0", "llama", four)]
        found.append(Case("0.5b", 151_936, sides))
    return found


class Worker:
    """A process that answers requests; `about` is what it said first."""

    def __init__(self, side: Side, python: str, threads: int):
        if side.who == "llama":
            command = [python, str(Path(__file__).with_name("llama_worker.py")), side.model, str(threads)]
        else:
            ours = [sys.executable, "-m", "benchmarks.decode_worker"]
            command = [*ours, side.who, side.model, side.weights, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
        )
        self.side, self.about = side, self._read()

    def ask(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.side.name} ended with {self._process.wait()}: see above")
        return json.loads(line)


class Figures(NamedTuple):
    """Of one side: tokens a second in each round, written and read; the first tokens that it wrote."""

    written: list[float]
    read: list[float]
    tokens: list[int]
    about: dict[str, Any]


def measure(case: Case, start: Callable[[Side], Any], rounds: int, new: int = NEW, long: int = LONG) -> list[Figures]:
    """Each side's figures; sides take turns, and the first answer of each does not count."""
    draw = random.Random(1)
    short, prompt = ([draw.randrange(case.vocabulary // 4) for _ in range(count)] for count in (PROMPT, long))
    workers = [start(side) for side in case.sides]
    try:
        found = [Figures([], [], worker.ask(short, 8)["tokens"], worker.about) for worker in workers]
        for round_ in range(rounds):
            for worker, figures in zip(workers, found, strict=True):
                print(f"{case.name} {round_ + 1}/{rounds}: {worker.side.name}", file=sys.stderr, flush=True)
                figures.written.append((new - 1) / worker.ask(short, new)["written"])
                figures.read.append(long / worker.ask(prompt, 1)["read"])
    finally:
        for worker in workers:
            worker.close()
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def compared(case: Case, found: Sequence[Figures], bandwidth: float) -> dict[str, float]:
    """The figures of a case for the last line. bandwidth: bytes a second."""
    ours, peers = found[0], [figures for side, figures in zip(case.sides, found, strict=True) if side.who == "llama"]
    write, read = ([ratio(getattr(ours, what), getattr(peer, what)) for peer in peers] for what in ("written", "read"))
    suffix = {"q4_1": "", "q8_0": "_q8", "f32": "_f32", "0.5b": "_05b"}[case.name]
    result = {f"decode_ratio{suffix}": write[0], f"prefill_ratio{suffix}": read[0]}
    if case.name == "q4_1":
        result |= {"decode_ratio_best": min(write), "prefill_ratio_best": min(read)}
    result[f"limit_share{suffix}"] = statistics.median(ours.written) * ours.about["bytes"] / bandwidth
    result[f"tokens_per_second{suffix}"] = statistics.median(ours.written)
    return result


def table(case: Case, found: Sequence[Figures], bandwidth: float) -> None:
    rows = []
    for side, figures in zip(case.sides, found, strict=True):
        about, speed = figures.about, statistics.median(figures.written)
        limit = bandwidth / about["bytes"] if "bytes" in about else 0.0
        alike = next((i for i, (a, b) in enumerate(zip(figures.tokens, found[0].tokens, strict=True)) if a != b), 8)
        rows.append([
            side.name, f"{speed:.1f}", f"{ratio(found[0].written, figures.written):.2f}",
            f"{statistics.median(figures.read):.0f}", f"{ratio(found[0].read, figures.read):.2f}",
            f"{limit:.0f} ({speed / limit:.0%})" if limit else "",
            f"{1 / about['products']:.0f}" if about.get("products") else "", f"{alike} of 8",
        ])  # fmt: skip
    columns = ["", "tokens/s", "ours ×", f"prompt of {LONG}", "ours ×", "limit of memory", "of products", "same tokens"]
    show(f"{case.name}: {PROMPT} tokens read, {NEW} written", columns, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python [this one]")
    parser.add_argument("--cases", default="q4_1,q8_0,f32,0.5b", help="which, with commas [all]")
    parser.add_argument("--rounds", type=int, help="[5, or 2 with --quick]")
    parser.add_argument("--threads", type=int, help="of each side [as many as torch takes]")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    python = llama_python(options.llama_python)

    import torch

    from shoestring.core.speeds import memory_bandwidth

    names, threads = options.cases.split(","), options.threads or torch.get_num_threads()
    if unknown := sorted(set(names) - {"q4_1", "q8_0", "f32", "0.5b"}):
        raise SystemExit(f"error: there is no case {unknown[0]!r}: q4_1, q8_0, f32 and 0.5b are")
    rounds = options.rounds or (2 if options.quick else 5)
    result: dict[str, float] = {}
    for case in cases(names):
        before = memory_bandwidth(refresh=True)
        found = measure(case, lambda side: Worker(side, python, threads), rounds)
        bandwidth = (before + memory_bandwidth(refresh=True)) / 2
        print(f"{bandwidth / 1e9:.1f} GB/s, {threads} threads")
        table(case, found, bandwidth)
        result |= compared(case, found, bandwidth)
    finish(result)


if __name__ == "__main__":
    main()
