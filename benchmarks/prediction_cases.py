"""The runs of `benchmarks.prediction`: what they train or read, and the worker of each use."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.random_models import large_model

RANK = 8
STUDENT = "small-9m"  # of every distillation
_TRAINS = ("pretrain", "finetune", "distill")
_LATENT = {"heads": 6, "latent_rank": 96, "content_width": 48, "rotary_width": 16, "value_width": 64}
_KINDS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mtla": {"attention": {"kind": "mtla", **_LATENT}},
    "moe": {"feed_forward": {"kind": "moe", "width": 512, "experts": 4, "shared_width": 256}},
    "reversible": {"block": "reversible"},
}


@dataclass(frozen=True)
class Case:
    """rows × length: tokens of a step, of which `microbatch` rows are computed at once; or what is read together.

    weights: of frozen linears; in memory (resident, checkpointed) source, int8, int4 or nf4, on disk (streamed) any
    format of a store. new: tokens that are written. settings: further ones of the run, dotted. budget: whether it is
    stated. steps: that are trained, of which the first two are not timed. Quantizing, rows calibrate and engine is the
    method.
    """

    use: str
    shape: str
    engine: str
    rows: int
    length: int
    microbatch: int = 1
    weights: str = "source"
    method: str = "lora"
    new: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    budget: bool = True
    steps: int = 6

    def __str__(self) -> str:
        words = [self.use, self.shape, self.engine, f"{self.rows} × {self.length}"]
        if self.use in _TRAINS:
            words += [f"{self.microbatch} at once"]
        if self.use == "finetune":
            words += [self.method, self.weights]
        elif self.weights != "source":
            words += [self.weights]
        if self.new:
            words += [f"and {self.new}"]
        return " ".join([*words, *(f"{value}" for value in self.settings.values()), *["no budget"] * (not self.budget)])


def _finetune(shape: str, engine: str, rows: int, length: int, microbatch: int, *rest: Any, **more: Any) -> Case:
    return Case("finetune", shape, engine, rows, length, microbatch, *rest, **more)


def _distill(shape: str, engine: str, rows: int, length: int, microbatch: int, **more: Any) -> Case:
    return Case("distill", shape, engine, rows, length, microbatch, **more)


CASES = (
    Case("pretrain", "gqa", "resident", 4, 256, 4),
    Case("pretrain", "gqa", "resident", 8, 256, 2, budget=False),
    Case("pretrain", "gqa", "resident", 4, 512, 1),
    Case("pretrain", "mtla", "resident", 4, 256, 2),
    Case("pretrain", "moe", "resident", 4, 256, 2),
    Case("pretrain", "reversible", "resident", 4, 256, 4),
    Case("pretrain", "gqa", "checkpointed", 8, 256, 8),
    Case("pretrain", "gqa", "checkpointed", 4, 256, 1),
    Case("pretrain", "moe", "checkpointed", 4, 256, 4),
    Case("pretrain", "mtla", "checkpointed", 4, 256, 4),
    _finetune("small-25m", "resident", 2, 256, 2),
    _finetune("small-25m", "resident", 4, 256, 2, settings={"adapter.method": "dora"}),
    _finetune("small-70m", "resident", 2, 512, 1, "source", "full"),
    _finetune("small-70m", "resident", 4, 256, 2, "nf4", "qlora"),
    _finetune("small-70m", "checkpointed", 8, 256, 8),
    _finetune("small-70m", "checkpointed", 2, 1024, 1, "int8", "qlora"),
    _finetune("small-25m", "checkpointed", 4, 256, 2),
    _finetune("small-70m", "checkpointed", 4, 256, 4, "int4", "qlora"),
    _finetune("small-25m", "streamed", 4, 256, 1),
    _finetune("small-25m", "streamed", 8, 256, 2, budget=False),
    _finetune("small-70m", "streamed", 8, 256, 2, "float32"),
    _finetune("small-70m", "streamed", 2, 1024, 2, "int8", settings={"budget.inputs": "disk"}),
    _finetune("small-70m", "streamed", 16, 128, 4, "nf4"),
    _finetune("qwen2.5-0.5b", "streamed", 4, 128, 2, "int8", steps=4),
    _distill("small-25m", "resident", 4, 256, 2),
    _distill("small-25m", "resident", 8, 128, 4, budget=False),
    _distill("small-25m", "checkpointed", 4, 256, 4),
    _distill("small-25m", "checkpointed", 2, 512, 1, settings={"distill.divergence": "reverse"}),
    _distill("small-25m", "resident", 4, 256, 2, settings={"budget.teacher": "streamed"}),
    Case("quantize", "small-25m", "rtn", 8, 256),
    Case("quantize", "small-70m", "rtn", 8, 256),
    Case("quantize", "small-25m", "gptq", 16, 256),
    Case("quantize", "small-9m", "gptq", 8, 256),
    Case("quantize", "small-25m", "awq", 16, 256),
    Case("quantize", "small-9m", "awq", 8, 256),
    Case("perplexity", "small-25m", "resident", 2, 1024, budget=False),
    Case("perplexity", "small-70m", "resident", 1, 1024),
    Case("perplexity", "small-25m", "resident", 1, 256),
    Case("perplexity", "small-70m", "streamed", 1, 1024),
    Case("perplexity", "small-70m", "streamed", 1, 1024, weights="int4"),
    Case("perplexity", "small-25m", "streamed", 1, 512),
    Case("generate", "small-25m", "resident", 1, 768, new=32),
    Case("generate", "small-25m", "resident", 8, 256, new=16, budget=False),
    Case("generate", "small-70m", "resident", 1, 256, new=32),
    Case("generate", "qwen2.5-0.5b", "resident", 1, 512, new=8),
    Case("generate", "small-70m", "streamed", 1, 768, new=8),
    Case("generate", "small-25m", "streamed", 1, 256, new=16),
    Case("generate", "small-70m", "streamed", 1, 256, weights="int8", new=8),
)


def prepare(cases: Sequence[Case], folder: Path) -> None:
    """Models, text and prepared text that the cases want; nothing is left for their own processes to make."""
    draw = random.Random(1)
    words = ("memory", "width", "layers", "tensor", "folder", "heads", "vocabulary", "model", "shape", "numbers")
    rows = [" ".join(draw.choices(words, k=1200 if number % 4 else 20)) for number in range(160)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    shapes = {case.shape for case in cases if case.use != "pretrain"}
    for shape in shapes | ({STUDENT} if any(case.use == "distill" for case in cases) else set()):
        large_model(shape)
    stores = {(case.shape, case.weights) for case in cases if case.engine == "streamed" and case.weights != "source"}
    for shape, weights in stores:
        from shoestring.offload.model import open_streamed

        open_streamed(large_model(shape), weights).close()  # type: ignore[arg-type]
    if any(case.use == "pretrain" for case in cases):
        from shoestring.data.config import DataConfig
        from shoestring.pretraining.dataset import open_dataset

        open_dataset(DataConfig.model_validate(_pretrain_data(folder)))


def _pretrain_data(folder: Path) -> dict[str, Any]:
    return {"source": str(folder / "rows.jsonl"), "tokenizer": {"vocabulary": 400}, "validation": 0.1}


# --- workers --------------------------------------------------------------------------------------------------------


def _common(case: Case, folder: Path) -> dict[str, Any]:
    settings = {
        "train.steps": case.steps,
        "train.batch_tokens": case.rows * case.length,
        "train.sequence_length": case.length,
        "train.microbatch": case.microbatch,
        "budget.engine": case.engine,
        "out": str(folder / str(case).replace(" ", "-")),
    }
    return settings | ({"budget.memory": "64GB"} if case.budget else {}) | case.settings


def _trained(result: Any) -> dict[str, Any]:
    """The receipt of the run."""
    from shoestring.plan.receipt import NAME, read

    return {"receipt": read(result.out / NAME)[0][-1].to_json(), "engine": result.engine}


def _run_pretrain(case: Case, folder: Path) -> dict[str, Any]:
    import shoestring
    from shoestring.pretraining.config import PretrainRecipe

    model = {
        "vocabulary": 16_384, "width": 384, "layers": 8, "context": 1024,
        "attention": {"kind": "gqa", "heads": 6, "kv_heads": 2, "head_width": 64},
        "feed_forward": {"kind": "swiglu", "width": 1024}, **_KINDS[case.shape],
    }  # fmt: skip
    recipe = PretrainRecipe.model_validate({
        "model": model, "data": _pretrain_data(folder), "train": {
            "steps": case.steps, "evaluate_tokens": 1024, "final_evaluate_tokens": 1024, "batch_tokens": case.length,
            "sequence_length": case.length,
        },
        "optimizer": {"learning_rate": 1e-3}, "schedule": {"kind": "wsd", "warmup": 1},
    })  # fmt: skip
    return _trained(shoestring.pretrain(recipe, overrides=_common(case, folder)))


def _run_finetune(case: Case, folder: Path) -> dict[str, Any]:
    import shoestring

    settings = {
        "train.answers": 0, "train.evaluate_examples": case.rows, "adapter.method": case.method, "adapter.rank": RANK,
    }  # fmt: skip
    if case.engine == "streamed":
        settings |= {"budget.weights": case.weights, "budget.slots": 2}
    elif case.weights != "source":
        settings |= {"adapter.method": "qlora", "adapter.base": case.weights}
    overrides = settings | _common(case, folder)
    return _trained(shoestring.finetune(large_model(case.shape), folder / "rows.jsonl", overrides=overrides))


def _run_distill(case: Case, folder: Path) -> dict[str, Any]:
    import shoestring

    settings = {"train.evaluate_examples": case.rows, "adapter.method": "full"} | _common(case, folder)
    teacher, student = large_model(case.shape), large_model(STUDENT)
    return _trained(shoestring.distill(teacher, student, folder / "rows.jsonl", overrides=settings))


def _run_quantize(case: Case, folder: Path) -> dict[str, Any]:
    import shoestring

    out = folder / str(case).replace(" ", "-")
    result = shoestring.quantize(
        large_model(case.shape), out, method=case.engine, calibrate=folder / "rows.jsonl", rows=case.rows,  # type: ignore[arg-type]
        context=case.length, held_out=4, memory="64GB" if case.budget else None,
    )  # fmt: skip
    return {"receipt": result.receipt.to_json()}


def _read(case: Case, scored: bool, run: Any) -> dict[str, Any]:
    """What a use of a model took. run: called with the loaded model, -> its receipt."""
    import torch

    from shoestring.core.machine import peak_rss_bytes, rss_bytes, total_memory_bytes
    from shoestring.core.speeds import FEW, matrix_peak, memory_bandwidth
    from shoestring.kernels import allocator
    from shoestring.models.weight_files import WeightFiles
    from shoestring.offload import load as loading
    from shoestring.plan.decoding import Loaded
    from shoestring.plan.shapes import Machine
    from shoestring.train.first_use import first_use

    allocator.install()
    folder = large_model(case.shape)
    with WeightFiles(folder) as files:
        config = files.config
    flops, bandwidth = matrix_peak(), memory_bandwidth(count=FEW)
    first_use(training=False)
    allocator.reset_peaks()
    before, process = peak_rss_bytes(), rss_bytes() - allocator.kept()
    threads = torch.get_num_threads()
    machine = Machine(process, flops, total=total_memory_bytes(), threads=threads, bandwidth=bandwidth)
    slots = 2 if case.engine == "streamed" else 0
    if slots:
        from shoestring.data.tokenizer import Tokenizer
        from shoestring.generate.language_model import LanguageModel
        from shoestring.offload.model import open_streamed

        decoder = open_streamed(folder, case.weights, slots)  # type: ignore[arg-type]
        model = LanguageModel(decoder.eval(), Tokenizer.load(folder), folder=folder)
        model.at_once = case.length
    else:
        model = loading.load(folder, memory="64GB" if case.budget else None, scoring=scored)
    model.loaded = Loaded(
        config, machine, "bfloat16", weights=case.weights, slots=slots, promised=True, before=before  # type: ignore[arg-type]
    )  # fmt: skip
    return {"receipt": run(model).to_json()}


def _run_perplexity(case: Case, folder: Path) -> dict[str, Any]:
    from shoestring.evaluate.perplexity import perplexity

    def run(model: Any) -> Any:
        # Windows that do not overlap: every label counts.
        return perplexity(model, folder / "rows.jsonl", context=case.length, stride=case.length, examples=8).receipt

    return _read(case, True, run)


def _run_generate(case: Case, folder: Path) -> dict[str, Any]:
    from shoestring.generate.receipts import of_texts

    def run(model: Any) -> Any:
        prompts = [[1 + (row + place) % 300 for place in range(case.length)] for row in range(case.rows)]
        for _ in range(2):  # what a streamed head keeps is there from the second on
            model.complete_ids(prompts, temperature=0.0, repetition_penalty=1.0, max_tokens=case.new)
        return of_texts(model, case.rows * case.length, case.rows, case.rows)

    return _read(case, False, run)


WORKERS = {
    "pretrain": _run_pretrain,
    "finetune": _run_finetune,
    "distill": _run_distill,
    "quantize": _run_quantize,
    "perplexity": _run_perplexity,
    "generate": _run_generate,
}
