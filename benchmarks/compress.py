"""What bits and methods of quantization cost SmolLM2-135M-Instruct: bytes, memory, speed, perplexity.

    python -m benchmarks.compress [--quick] [--cases "gptq 4,rtn 4"] [--steps N] [--model MODEL] [--peer-python PYTHON]

The model's published weights are here only in a file of 4 bits, and would be rounded back to that file's grid; so they
are first moved off it, by training all of them on `stdlib` for some hundred steps. That is done once and kept in the
cache. Each case is quantized by a process of its own, calibrated on windows of `stdlib`, and measured on other windows
of it and on conversations. A gap is how much perplexity grew: int8_gap of 8 bits to nearest by rows, int4_gap of the
best method with 4 bits in groups of 32, int4_gap_over_rtn that by the gap of rounding to nearest.

PYTHON: an interpreter that has llm-compressor and auto-round. Each of our methods that is measured is then set against
theirs: it gets the same windows, its folder is read and measured as ours are. gptq_over_peer, awq_over_peer and
learned_over_peer are perplexities of ours by those of theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import finish, run_worker, show

CONVERSATIONS = Path(__file__).with_name("conversations.jsonl")
MODULE = "benchmarks.compress"
CASES: dict[str, dict[str, Any]] = {
    "rtn 8 rows": {"method": "rtn", "bits": 8, "group": 0},
    "rtn 8 rows, inputs 8": {"method": "rtn", "bits": 8, "group": 0, "activations": "int8"},
    "rtn 4": {"method": "rtn", "bits": 4},
    "gptq 4": {"method": "gptq", "bits": 4},
    "awq 4": {"method": "awq", "bits": 4},
    "learned 4": {"method": "learned", "bits": 4},
    "gptq 4 asymmetric": {"method": "gptq", "bits": 4, "symmetric": False},
    "learned 4 asymmetric": {"method": "learned", "bits": 4, "symmetric": False},
    "rtn 4 in 64": {"method": "rtn", "bits": 4, "group": 64},
    "gptq 4 in 64": {"method": "gptq", "bits": 4, "group": 64},
    "rtn 3": {"method": "rtn", "bits": 3},
    "gptq 3": {"method": "gptq", "bits": 3},
    "learned 3": {"method": "learned", "bits": 3},
}
PEERS = {"gptq 4": "llm-compressor gptq 4", "awq 4": "llm-compressor awq 4", "learned 4": "auto-round 4"}
"""Cases of ours, and those of others that they are set against."""
BEST_OF = ("gptq 4", "awq 4", "learned 4", "gptq 4 asymmetric", "learned 4 asymmetric")


def moved(model: str, steps: int) -> Path:
    """The model with all weights trained for so many steps: made once."""
    from shoestring.core.config import load_config
    from shoestring.core.files import cache_dir
    from shoestring.core.yaml_document import YamlDocument
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.folder import load_model, read_generation_config, save_model
    from shoestring.models.resolve import find_model
    from shoestring.pretraining.config import PretrainRecipe
    from shoestring.pretraining.job import pretrain

    folder = cache_dir() / "benchmarks" / f"compress-{Path(model).name}-{steps}"
    if (folder / "config.json").is_file():
        return folder
    recipe = {
        "model": {"init": model}, "data": {"source": "stdlib"},
        "train": {"steps": steps, "batch_tokens": 512, "sequence_length": 256, "evaluate_every": 10**9,
                  "final_evaluate_tokens": 4096, "checkpoint_every": 10**9},
        "optimizer": {"learning_rate": 5e-5}, "schedule": {"kind": "wsd", "warmup": 0.1, "decay": 0.4},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        pretrain(load_config(PretrainRecipe, YamlDocument(recipe, {}, "benchmarks.compress")), out=str(out))
        trained = find_model(str(out))
        source = find_model(model)
        save_model(load_model(trained), folder, Tokenizer.load(source), read_generation_config(source))
    return folder


def of_peer(model: str, case: str, settings: dict[str, Any], python: str, place: Path) -> tuple[dict[str, Any], Path]:
    """What the other library makes of the same windows, measured on the same others, and its folder under `place`.
    case: the one of ours that it is set against."""
    from shoestring.compression.calibration import read_calibration
    from shoestring.compression.decoding import decode
    from shoestring.compression.quantize.config import quantize_config
    from shoestring.data.batch import PADDING_SEGMENT
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.folder import load_model
    from shoestring.models.resolve import find_model
    from shoestring.models.weight_files import WeightFiles
    from shoestring.train.objective import next_token

    folder = find_model(model)
    method = CASES[case]["method"]
    given = quantize_config({**settings, "method": method})
    with WeightFiles(folder) as files:
        text = read_calibration(given, Tokenizer.load(folder), files.config.context, None)
    windows = [
        row_T[segments_T == segment].tolist()
        for batch in text.calibrating
        for row_T, segments_T in zip(batch.tokens_BT, batch.segments_BT, strict=True)
        for segment in segments_T.unique().tolist()
        if segment != PADDING_SEGMENT
    ]
    ids = place / "windows.json"
    ids.write_text(json.dumps(windows))
    asked = {
        "method": method, "model": str(folder), "out": str(place / "theirs"), "ids": str(ids), "steps": given.steps
    }  # fmt: skip
    worker = [python, str(Path(__file__).with_name("compress_peer.py")), json.dumps(asked)]
    done = subprocess.run(worker, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {PEERS[case]} failed:\n{done.stderr[-3000:]}")
    out = next((place / "theirs").rglob("config.json")).parent
    Tokenizer.load(folder).save(out)
    decoder, nats = load_model(out), 0.0
    with torch.inference_mode():
        for batch in text.measured:
            hidden_BTD = decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT)[0]
            nats += float(next_token(hidden_BTD, decoder.head, batch).sum)
    side = {
        "weight_bytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
        "decoding": asdict(decode(out, "file")), "perplexity": math.exp(nats / text.labels),
    }  # fmt: skip
    return {"after": side, "peak_memory": 0, **json.loads(done.stdout.splitlines()[-1])}, out


def work(model: str, case: str, settings: dict[str, Any], python: str = "") -> None:
    """One case, or the model as it is, in this process. python: that of the library that the case is set against, to
    measure what this one makes."""
    from shoestring.compression.quantize.job import quantize
    from shoestring.evaluate.perplexity import perplexity

    with tempfile.TemporaryDirectory() as place:
        found: dict[str, Any] = {}
        folder = Path(model)
        if python:
            found, folder = of_peer(model, case, settings, python, Path(place))
        elif case:
            folder = Path(place) / "q"
            result = quantize(model, folder, **CASES[case], **settings)
            found = result.report()
            found["peak_memory"] = result.peak_memory
        found["conversations"] = perplexity(str(folder), CONVERSATIONS, context=512).perplexity
    print(json.dumps({key: value for key, value in found.items() if key != "matrices"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three cases, little text, and the weights as they are")
    parser.add_argument("--cases", help=f"of {', '.join(CASES)}, by commas; all")
    parser.add_argument("--steps", type=int, default=200, help="of training, which moves the weights first")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64, help="of 512 tokens of calibration text")
    parser.add_argument("--learning", type=int, default=100, help="steps of method learned, for each block")
    parser.add_argument("--peer-python", help="an interpreter that has llm-compressor and auto-round [none]")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(**json.loads(arguments.worker))
        return
    names = ["rtn 8 rows", "rtn 4", "gptq 4"] if arguments.quick else list(CASES)
    if arguments.cases:
        names = [name.strip() for name in arguments.cases.split(",")]
    rows = 4 if arguments.quick else arguments.rows
    model = arguments.model if arguments.quick else str(moved(arguments.model, arguments.steps))
    table(model, names, rows, arguments.learning, arguments.peer_python)


def table(model: str, names: list[str], rows: int, learning: int, python: str | None = None) -> None:
    dense = run_worker(MODULE, "--worker", json.dumps({"model": model, "case": "", "settings": {}}))
    found: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {"calibrate": "stdlib", "rows": rows, "held_out": max(rows // 2, 2)}
    for name in names:
        steps = {"steps": learning} if CASES[name]["method"] == "learned" else {}
        asked = {"model": model, "case": name, "settings": settings | steps}
        found[name] = _run(name, asked)
        if python is not None and name in PEERS:
            theirs = _run(PEERS[name], {**asked, "python": python})
            found[PEERS[name]] = {**theirs, "before": found[name]["before"]}
    first = next(iter(found.values()))["before"]
    lines = [_line("float32", first, first, dense["conversations"], dense["conversations"], None)]
    figures: dict[str, Any] = {}
    for name, case in found.items():
        lines.append(
            _line(name, case["after"], case["before"], case["conversations"], dense["conversations"], case)
        )
        key = name.replace(" ", "_").replace(",", "")
        figures[f"{key}_gap"] = _gap(case)
        figures[f"{key}_conversations_gap"] = case["conversations"] / dense["conversations"] - 1
    columns = ["", "MB", "decoding MB", "tokens/s", "perplexity", "grew", "conversations", "grew", "seconds", "peak MB"]
    show(f"{Path(model).name}: {rows} rows of 512 tokens of stdlib, groups of 32 unless said", columns, lines)
    finish(figures | required(found))


def _run(name: str, asked: dict[str, Any]) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    found = run_worker(MODULE, "--worker", json.dumps(asked))
    print(f"{name}: perplexity {found['after']['perplexity']:.3f}", file=sys.stderr, flush=True)
    return found


def required(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures that the issue asks for, of those cases that were run."""
    figures = {}
    if "rtn 8 rows" in found:
        figures["int8_gap"] = _gap(found["rtn 8 rows"])
    best = [_gap(found[name]) for name in BEST_OF if name in found]
    if best:
        figures["int4_gap"] = min(best)
        if "rtn 4" in found:
            figures["int4_gap_over_rtn"] = min(best) / max(_gap(found["rtn 4"]), 1e-9)
    for ours, theirs in PEERS.items():
        if ours in found and theirs in found:
            here, there = (found[name]["after"]["perplexity"] for name in (ours, theirs))
            figures[f"{CASES[ours]['method']}_over_peer"] = here / there
    return figures


def _gap(case: dict[str, Any]) -> float:
    return case["after"]["perplexity"] / case["before"]["perplexity"] - 1


def _line(
    name: str, side: dict[str, Any], before: dict[str, Any], talk: float, dense_talk: float, case: dict[str, Any] | None
) -> list[str]:
    decoding = side["decoding"] or {"memory": 0, "tokens_per_second": 0}
    return [
        name, f"{side['weight_bytes'] / 1e6:.1f}", f"{decoding['memory'] / 1e6:.1f}",
        f"{decoding['tokens_per_second']:.1f}", f"{side['perplexity']:.3f}",
        f"{side['perplexity'] / before['perplexity'] - 1:+.2%}", f"{talk:.3f}", f"{talk / dense_talk - 1:+.2%}",
        "" if case is None else f"{case['seconds']:.0f}", "" if case is None else f"{case['peak_memory'] / 1e6:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
