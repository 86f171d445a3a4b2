"""Four claims about smaller models, each measured end to end, on SmolLM2-135M-Instruct off its 4-bit grid.

    python -m benchmarks.claims [--quick] [--only size,memory,speed,student] [--model M] [--minutes 50] [--search 15]
                                [--keep FOLDER]

    size      `compress --target 0.25x`, which begins no candidate after --search minutes: at least 75% fewer bytes, at
              least 97% of the whole suite's score, and perplexity on held-out text at most 3% higher
    memory    decoding that model with its codes as they are: at least 70% less resident memory than in float32
    speed     the same: at least twice the tokens a second
    student   30% fewer parameters by `prune`, then `distill` by the model itself on made exercises, on two threads
              within 60 minutes, of which --minutes are given to the work: at least 90% of the teacher's score on the
              groups of the suite it was distilled on

The model is that of `benchmarks.compress`: its weights are first moved off the grid of the file they come from, once.
It is calibrated with Python's library and with talk that it writes itself (`benchmarks.calibration_text`), since the
suite is mostly talk; perplexity is that of other files of the library, in windows of 512 tokens that do not overlap.
Every measurement has a process of its own. Memory is what the resident set grows by from just before the model is
loaded to the end of decoding: what Python and torch take is there in both, and printed beside. Speeds alternate, and
medians are compared. The student's minutes count pruning, recovering and distilling, not the suite. A claim that is not
met says by how much; claims_met counts those that are.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.calibration_text import write
from benchmarks.compress import moved
from benchmarks.measure import alternate, finish, run_worker, show

MODULE = "benchmarks.claims"
CLAIMS = ("size", "memory", "speed", "student")
# What the student is distilled on, and the groups of the suite that ask it: kinds of exercises, parts of each 1,000.
EXERCISES = {
    "sums": 150, "annotated": 100, "arithmetic": 50, "patterns": 300, "comparisons": 50, "instructions": 200,
    "functions": 50, "structure": 50, "code": 50,
}  # fmt: skip
GROUPS = ("arithmetic", "arithmetic format", "patterns", "instructions", "code structure")
SMALLER, KEPT, GROWN = 0.75, 0.97, 0.03  # of size: bytes saved, suite kept, perplexity
LESS_MEMORY, FASTER = 0.70, 2.0
FEWER, STUDENT_KEPT, WITHIN = 0.30, 0.90, 60.0  # minutes
PRUNED = 0.695  # parameters asked for: layers and channels are taken out whole, and 30% must go
_RECOVERING = 0.15  # of the minutes
_PROMPT = "Tell me in a few sentences what a library is good for."


# --- what is claimed ----------------------------------------------------------------------------------------------


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The last line's figures, of what was measured; those that were not are left out. claims_met: of so many
    `claims_measured`; missed: why, for each that is not met."""
    figures: dict[str, Any] = {}
    missed: dict[str, str] = {}

    def claim(name: str, *conditions: tuple[bool, str]) -> None:
        if reasons := [reason for met, reason in conditions if not met]:
            missed[name] = "; ".join(reasons)

    if size := found.get("size"):
        saved = 1 - size["after"]["weight_bytes"] / size["before"]["weight_bytes"]
        grown = size["perplexity_after"] / size["perplexity_before"] - 1
        kept = share_kept(size["suite_before"], size["suite_after"])
        figures |= {"size_saved": saved, "size_perplexity_gap": grown, "size_suite_kept": kept}
        claim(
            "size",
            (_at_least(saved, SMALLER), f"{saved:.1%} of the bytes saved, not {SMALLER:.0%}"),
            (_at_least(GROWN, grown), f"perplexity {grown:+.1%}, not within {GROWN:.0%}"),
            (_at_least(kept, KEPT), _kept_reason(kept, KEPT)),
        )
    if memory := found.get("memory"):
        saved = 1 - memory["small"]["grown"] / memory["float32"]["grown"]
        whole = 1 - memory["small"]["resident"] / memory["float32"]["resident"]
        figures |= {"memory_saved": saved, "memory_saved_of_the_whole_process": whole}
        claim("memory", (_at_least(saved, LESS_MEMORY), f"{saved:.1%} saved, not {LESS_MEMORY:.0%}"))
    if speed := found.get("speed"):
        ratio = speed["small"] / speed["float32"]
        figures["decoding_speedup"] = ratio
        claim("speed", (_at_least(ratio, FASTER), f"{ratio:.2f} times as fast, not {FASTER:g}"))
    if student := found.get("student"):
        fewer = 1 - student["parameters"] / student["teacher_parameters"]
        kept = share_kept(student["suite_before"], student["suite_after"])
        minutes = student["seconds"] / 60
        figures |= {"student_fewer_parameters": fewer, "student_suite_kept": kept, "student_minutes": minutes}
        claim(
            "student",
            (_at_least(fewer, FEWER), f"{fewer:.1%} fewer parameters, not {FEWER:.0%}"),
            (_at_least(kept, STUDENT_KEPT), _kept_reason(kept, STUDENT_KEPT)),
            (_at_least(WITHIN, minutes), f"{minutes:.1f} minutes, not {WITHIN:g}"),
        )
    figures |= {"claims_met": len(found) - len(missed), "claims_measured": len(found)}
    return figures | ({"missed": missed} if missed else {})


def _at_least(found: float | None, wanted: float) -> bool:
    """Figures of two divisions are compared, whose last bits mean nothing."""
    return found is not None and found >= wanted - 1e-9


def share_kept(before: float, after: float) -> float | None:
    """None where there was nothing to keep."""
    return after / before if before else None


def _kept_reason(kept: float | None, wanted: float) -> str:
    if kept is None:
        return "the model answers none of the suite's questions, so there is nothing to keep"
    return f"{kept:.1%} of the suite's score kept, not {wanted:.0%}"


# --- workers ------------------------------------------------------------------------------------------------------


def text(model: str, folder: str, pieces: int, conversations: int) -> dict[str, Any]:
    calibration, held_out = Path(folder) / "calibration.jsonl", Path(folder) / "held-out.jsonl"
    told = 0
    if not calibration.exists() or not held_out.exists():  # of a run into the same folder
        told = write(model, calibration, held_out, pieces, conversations, held=max(pieces // 4, 2))
    return {"calibration": str(calibration), "held_out": str(held_out), "conversations": told}


def compress(model: str, out: str, calibrate: str, rows: int, seconds: float | None) -> dict[str, Any]:
    import shoestring

    result = shoestring.compress(
        model, out, target="0.25x", calibrate=calibrate, rows=rows, held_out=max(rows // 2, 2), time=seconds
    )
    report = result.report()
    return {name: report[name] for name in ("before", "after", "chosen", "quality", "candidates", "peak_memory")}


def perplexity(model: str, data: str) -> dict[str, Any]:
    import shoestring
    from shoestring.offload.load import load

    found = shoestring.perplexity(load(model, "cpu"), data, context=512, stride=512)
    return {"perplexity": found.perplexity, "tokens": found.tokens}


def suite(model: str, groups: Sequence[str], items: int) -> dict[str, Any]:
    """Answers are kept in the cache: a benchmark that was stopped goes on."""
    from shoestring.evaluate.suite.kept import Kept, digest_of
    from shoestring.evaluate.suite.run import evaluate
    from shoestring.offload.load import load

    language = load(model, "cpu")
    digest = digest_of(language)
    found, _ = evaluate(language, only=groups, items=items, name=model, kept=None if digest is None else Kept(digest))
    by_group = {group.name: group.share for group in found.groups}
    return {"share": found.total.share, "of": found.total.of, "groups": by_group, "left_out": found.left_out}


def decode(model: str, weights: str, tokens: int) -> dict[str, Any]:
    from shoestring.core.machine import rss_bytes
    from shoestring.generate.config import SamplingConfig
    from shoestring.generate.request import Request
    from shoestring.kernels import allocator
    from shoestring.offload.load import load
    from shoestring.train.first_use import first_use

    allocator.install()  # as every command does
    first_use(training=False)
    before = rss_bytes()
    language = load(model, "cpu", weights=weights)  # type: ignore[arg-type]
    prompt = language.encode_prompt(_PROMPT, "text")
    scheduler = language.scheduler(1, len(prompt) + tokens)
    scheduler.add(Request(prompt, SamplingConfig(max_tokens=tokens, temperature=0)))
    done, seconds = 0, []
    while done < tokens:
        began = time.perf_counter()
        events = list(scheduler.step())
        if not events:
            break
        done += len(events)
        seconds.append((time.perf_counter() - began) / len(events))
    resident = rss_bytes()
    speed = 1 / statistics.median(seconds[1:] or seconds)
    return {"grown": resident - before, "resident": resident, "tokens_per_second": speed, "tokens": done}


def student(teacher: str, place: str, minutes: float, exercises: int) -> dict[str, Any]:
    """Prune, recover and distill inside the minutes."""
    import torch

    import shoestring

    torch.set_num_threads(min(torch.get_num_threads(), 2))
    folder, data = Path(place), Path(place) / "exercises.jsonl"
    write_exercises(data, exercises)
    began = time.perf_counter()
    recovering = 60 * minutes * _RECOVERING
    pruned = shoestring.prune(
        teacher, folder / "pruned", str(data), parameters=f"{PRUNED}x", recover=f"{recovering:.0f}s", dtype="float32"
    )
    left = 60 * minutes * 0.97 - (time.perf_counter() - began)
    taught = shoestring.distill(
        teacher, folder / "pruned", str(data), time=max(left, 1.0), labels=0.5, out=folder / "run",
        train__batch_tokens=1024, optimizer__learning_rate=3e-4,
    )  # fmt: skip
    return {
        "seconds": time.perf_counter() - began, "model": str(taught.model), "steps": taught.steps,
        "parameters": pruned.parameters, "teacher_parameters": pruned.parameters_before,
    }  # fmt: skip


def write_exercises(file: Path, count: int) -> None:
    """So many rows of the kinds, in an order of chance; none of them is a question of the suite."""
    from shoestring.data.synthetic.kinds import make

    rows = []
    for kind, share in EXERCISES.items():
        rows += [exercise.row() for exercise in make(kind, max(count * share // 1000, 4), test=0.0).train]
    random.Random(1).shuffle(rows)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WORKERS = {
    "text": text, "compress": compress, "perplexity": perplexity, "suite": suite, "decode": decode, "student": student,
}  # fmt: skip


def worker(what: str, **settings: Any) -> dict[str, Any]:
    print(f"{what}: {', '.join(f'{name} {value}' for name, value in settings.items())}", file=sys.stderr, flush=True)
    return run_worker(MODULE, "--worker", what, "--settings", json.dumps(settings))


# --- the four -----------------------------------------------------------------------------------------------------


def measure(
    model: str, names: Sequence[str], place: Path, quick: bool, minutes: float, search: float = 15.0
) -> dict[str, Any]:
    """What `judged` reads. minutes: of the student; search: after which `compress` begins no candidate."""
    rows, items, tokens, rounds = (4, 1, 8, 1) if quick else (96, 30, 64, 5)
    pieces, conversations = (8, 2) if quick else (128, 240)
    found: dict[str, Any] = {}
    small = str(place / "small")
    if {"size", "memory", "speed"} & set(names):
        texts = worker("text", model=model, folder=str(place), pieces=pieces, conversations=conversations)
        seconds = 5.0 if quick else 60 * search
        made = worker("compress", model=model, out=small, calibrate=texts["calibration"], rows=rows, seconds=seconds)
        if "size" in names:
            read = [worker("perplexity", model=each, data=texts["held_out"]) for each in (model, small)]
            before, after = (
                worker("suite", model=each, groups=["conversation"] if quick else [], items=items)
                for each in (model, small)
            )
            found["size"] = made | {
                "suite_before": before["share"], "suite_after": after["share"], "questions": before["of"],
                "perplexity_before": read[0]["perplexity"], "perplexity_after": read[1]["perplexity"],
                "groups_before": before["groups"], "groups_after": after["groups"],
            }  # fmt: skip
    if {"memory", "speed"} & set(names):
        sides = ((model, "float32"), (small, "file"))
        settings = [{"model": each, "weights": weights, "tokens": tokens} for each, weights in sides]
        asked = [["--worker", "decode", "--settings", json.dumps(each)] for each in settings]
        dense, codes = alternate(MODULE, asked, rounds)
        middle = {
            key: [statistics.median(result[key] for result in side) for side in (dense, codes)]
            for key in ("grown", "resident", "tokens_per_second")
        }
        if "memory" in names:
            found["memory"] = {
                side: {"grown": middle["grown"][number], "resident": middle["resident"][number]}
                for number, side in enumerate(("float32", "small"))
            }
        if "speed" in names:
            found["speed"] = dict(zip(("float32", "small"), middle["tokens_per_second"], strict=True))
    if "student" in names:
        groups = ["conversation"] if quick else list(GROUPS)
        made = worker("student", teacher=model, place=str(place), minutes=minutes, exercises=100 if quick else 40_000)
        before, after = (worker("suite", model=each, groups=groups, items=items) for each in (model, made["model"]))
        found["student"] = made | {
            "suite_before": before["share"], "suite_after": after["share"],
            "groups_before": before["groups"], "groups_after": after["groups"],
        }  # fmt: skip
    return found


def report(found: dict[str, Any]) -> None:
    figures = judged(found)
    missed = figures.get("missed", {})
    rows = []
    for name in found:
        told = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items() if key in _FIGURES[name])
        rows.append([name, told, "not met: " + missed[name] if name in missed else "met"])
    show("Claims about smaller models", ["claim", "measured", ""], rows)
    for name, sides in (("size", ["before", "after"]), ("student", ["teacher", "student"])):
        if name in found:
            before, after = found[name]["groups_before"], found[name]["groups_after"]
            rows = [[group, f"{before[group]:.1%}", f"{after.get(group, 0.0):.1%}"] for group in before]
            show(f"{name.capitalize()}: groups of the suite", ["", *sides], rows)
    if "size" in found:
        print(f"size: {found['size']['chosen']}, of {found['size']['questions']} questions")
    finish(figures)


_FIGURES = {
    "size": ("size_saved", "size_perplexity_gap", "size_suite_kept"),
    "memory": ("memory_saved", "memory_saved_of_the_whole_process"), "speed": ("decoding_speedup",),
    "student": ("student_fewer_parameters", "student_suite_kept", "student_minutes"),
}  # fmt: skip


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small random model, little text, a few seconds of each")
    parser.add_argument("--only", help=f"of {', '.join(CLAIMS)}, by commas; all")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=200, help="of training, which moves the weights first")
    parser.add_argument("--minutes", type=float, default=50.0, help="given to pruning and distilling")
    parser.add_argument("--search", type=float, default=15.0, help="minutes after which compress begins no candidate")
    parser.add_argument("--keep", type=Path, help="a folder for the models that are made [none is kept]")
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        print(json.dumps(WORKERS[given.worker](**json.loads(given.settings))))
        return
    names = list(CLAIMS) if given.only is None else [name.strip() for name in given.only.split(",")]
    if unknown := [name for name in names if name not in CLAIMS]:
        parser.error(f"{unknown[0]} is none of {', '.join(CLAIMS)}")
    if given.quick:
        from benchmarks.random_models import large_model

        model, given.minutes = str(large_model("small-25m", "float32")), 0.3
    else:
        model = str(moved(given.model, given.steps))
    with tempfile.TemporaryDirectory() as temporary:
        place = given.keep or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        report(measure(model, names, place, given.quick, given.minutes, given.search))


if __name__ == "__main__":
    main()
