"""Damaged recipes, settings, runs that are to go on, and what a run tells of itself."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from shoestring.compression.distill.job import distill
from shoestring.core.errors import RunError
from shoestring.finetuning.job import finetune
from shoestring.plan.machine_file import save_machine
from shoestring.plan.receipt import Item, Receipt, append
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train.metrics import truncate_metrics
from shoestring.train.plot import write_plot
from shoestring.train.report.write import report
from shoestring.train.sharded_files import ShardedFiles, write_shard
from tests.finetuning import tiny
from tests.forecast.machines import described
from tests.fuzz.kind import Damage, Kind, call, command
from tests.fuzz.mutations import HOSTILE, damaged, damaged_json, damaged_lines, damaged_safetensors
from tests.train.tiny import corpus, recipe_text


def machine(sound: Path, base: Path, rows: Path) -> Kind:
    """A machine that was described, and is planned for."""
    sound.mkdir()
    save_machine(described(), sound / "laptop.yaml")

    def read(it: Path, rng: random.Random) -> int:
        return command("plan", "quickstart-smoke", "--machine", it / "laptop.yaml")

    return Kind("machine", sound, {"laptop.yaml": [damaged]}, read)


def recipe(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    source = Path(load_pretrain_recipe.__code__.co_filename).parents[1] / "recipes" / "quickstart.yaml"
    (sound / "r.yaml").write_bytes(source.read_bytes())
    (sound / "j.yaml").write_text(json.dumps(load_pretrain_recipe("quickstart").model_dump(mode="json")))
    files = {"r.yaml": [damaged], "j.yaml": [damaged_json]}
    return Kind("recipe", sound, files, lambda it, rng: max(command("recipe", "check", it / name) for name in files))


def values(sound: Path, base: Path, rows: Path) -> Kind:
    """Settings on the command line."""
    sound.mkdir()
    (sound / "v").write_bytes(b'["a", {"b": 1e3}]')
    keys = ["model.width", "train.steps", "optimizer.betas", "seed", "model.attention", "train.time", "budget.memory"]

    def read(it: Path, rng: random.Random) -> int:
        value = rng.choice([(it / "v").read_bytes().decode(errors="replace"), str(rng.choice(HOSTILE))])
        key = rng.choice([*keys, ".".join(["a"] * 2000), value[:20]])
        return min(call(load_pretrain_recipe, "quickstart-smoke", {key: value}), 2)

    return Kind("value", sound, {"v": [damaged]}, read)


def finetuned(sound: Path, base: Path, rows: Path) -> Kind:
    """A fine-tuning run, one step before its end."""
    out = sound / "run"
    finetune(
        base,
        rows,
        out=str(out),
        overrides={**tiny.SHORT, "train.steps": 3, "train.checkpoint_every": 2, "train.keep": 2},
    )
    _one_step_back(out, 2)
    return _resumed("finetune", sound, out)


def trained(sound: Path, base: Path, rows: Path) -> Kind:
    """A pretraining run, one step before its end."""
    sound.mkdir()
    (sound / "recipe.yaml").write_text(recipe_text(corpus(sound.parent / "text"), 4, "log: {every: 1}"))
    out = sound / "run"
    pretrain(sound / "recipe.yaml", out=str(out), overrides={"train.keep": 2})
    _one_step_back(out, 3)
    return _resumed("pretrain", sound, out)


def distilled(sound: Path, base: Path, rows: Path) -> Kind:
    """A distillation from samples of its teacher, one step before its end."""
    out = sound / "run"
    overrides = {**tiny.SHORT, "train.steps": 3, "train.checkpoint_every": 2, "train.keep": 2}
    del overrides["train.answers"]
    distill(base, base, rows, out=out, cache_samples=4, overrides=overrides)
    _one_step_back(out, 2)
    kind = _resumed("distill", sound, out)
    samples = {"run/.samples/journal.json": [damaged_json, damaged]}
    for file in (out / ".samples").glob("part-*"):
        samples[f"run/.samples/{file.name}"] = [damaged_safetensors, damaged]
    return replace(kind, files={**kind.files, **samples})


def _one_step_back(out: Path, step: int) -> None:
    for folder in out.glob("step-*"):
        if folder.name != f"step-{step:06d}":
            shutil.rmtree(folder)
    os.remove(out / "latest")
    os.symlink(f"step-{step:06d}", out / "latest")


def _resumed(verb: str, sound: Path, out: Path) -> Kind:
    trainer = f"run/{next(out.glob('step-*')).name}/trainer"
    files: dict[str, list[Damage]] = {
        f"{trainer}/state.json": [damaged_json, damaged_json, damaged],
        f"{trainer}/optimizer.safetensors": [damaged_safetensors, damaged],
        f"{trainer}/random.safetensors": [damaged_safetensors, damaged],
        "run/metrics.jsonl": [damaged_lines, damaged],
        "run/recipe.yaml": [damaged],
    }  # fmt: skip
    if verb == "finetune":
        files["run/answers.json"] = [damaged_json]

    def read(it: Path, rng: random.Random) -> int:
        recipe = (it / "run" / "recipe.yaml").read_bytes()  # the run stands elsewhere now
        (it / "run" / "recipe.yaml").write_bytes(recipe.replace(str(out).encode(), str(it / "run").encode()))
        return command(verb, "--resume", it / "run")

    return Kind(f"{verb} run", sound, files, read)


def metrics(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    numbers = {"tokens": 64, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0}
    held_out = {"tokens": 64, "held_out_loss": 2.0, "bits_per_byte": 1.0, "held_out_tokens": 9}
    lines = [{"step": step, **(held_out if step % 3 == 0 else numbers)} for step in range(1, 20)]
    (sound / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read(it: Path, rng: random.Random) -> int:
        drawn = call(write_plot, it / "metrics.jsonl", it / "loss.png", "x", 2.0)
        shown = call(report, it)
        return max(drawn, shown, call(truncate_metrics, it / "metrics.jsonl", 5))

    answers = [{"question": "1 + 1?", "expected": "2", "before": "3", "after": "2"}]
    (sound / "answers.json").write_text(json.dumps(answers))
    (sound / "recipe.yaml").write_text("model: {width: 32}\nout: runs/x\n")
    began = {"session": "began", "step": 0, "processor": "x", "cores": 8, "matrix_peak": 1e11}
    predicted = {"predicted": {"memory": 10**9}, "predicted_parts": [["weights", 10**9]]}
    sessions = [{**began, **predicted}, {"session": "ended", "step": 19, "peak_memory": 10**9, "how": "finished"}]
    (sound / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    receipt = Receipt("pretrain", "resident", "x | 8 threads", count=3, measured_seconds=1.5, predicted_seconds=1.0)
    for item in (Item("weights", "bytes", 1e9, 1e9), Item("a step", "seconds", 1.0, None)):
        append(replace(receipt, items=(*receipt.items, item)), sound / "receipts.jsonl")
    files: dict[str, list[Damage]] = {
        "metrics.jsonl": [damaged_lines, damaged], "sessions.jsonl": [damaged_lines, damaged],
        "receipts.jsonl": [damaged_lines, damaged],
        "answers.json": [damaged_json, damaged], "recipe.yaml": [damaged],
    }  # fmt: skip
    return Kind("metrics", sound, files, read)


def in_parts(sound: Path, base: Path, rows: Path) -> Kind:
    """Moments that two ranks have written, as one reads them."""
    whole = {"a.weight/exp_avg": torch.arange(30.0).reshape(5, 6), "b.weight/exp_avg": torch.arange(5.0)}
    for rank, (low, high) in enumerate([(0, 3), (3, 5)]):
        parts = {name: (tensor[low:high], low) for name, tensor in whole.items()}
        write_shard(sound, rank, 2, parts | ({} if rank else {"a.weight/step": (torch.tensor(3.0), 0)}))

    def read(it: Path) -> None:
        with ShardedFiles(it) as files:
            for name, tensor in whole.items():
                if name not in files.infos or files.infos[name].shape != tensor.shape:
                    raise RunError("the optimizer's state does not fit", str(it))
                files.read_into(name, torch.zeros_like(tensor))

    files: dict[str, list[Damage]] = {path.name: [damaged_safetensors, damaged] for path in sorted(sound.iterdir())}
    return Kind("moments in parts", sound, files, lambda it, rng: call(read, it))
