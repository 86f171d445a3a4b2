"""One of two gloo processes that are two laptops: a part of the model each, a disk each. For test_finetune_split.py.

    python -m tests.finetuning.split_finetune_ranks FOLDER   (RANK, WORLD_SIZE, ... as torchrun sets them)

FOLDER has model/, sums.jsonl and text.txt; FOLDER/diskRANK is where this one works, FOLDER/RANK.json what it found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from shoestring.core.errors import ShoestringError
from shoestring.evaluate.log_likelihood import log_likelihoods
from shoestring.evaluate.perplexity import perplexity
from shoestring.finetuning.job import finetune
from shoestring.offload.pipeline.language import load_over
from shoestring.plan.ranges import Split
from shoestring.pretraining.job import pretrain
from shoestring.train import parallel
from shoestring.train.interrupt import Interrupted
from shoestring.train.loop import Callback, StepEvent
from shoestring.train.watching import watched_by
from tests.finetuning import tiny

FIRST, OTHER = "[[0, 2], [2, 3]]", "[[0, 1], [1, 3]]"
LIKELY = [([5, 6, 7, 8, 9], 2), ([40, 41, 42], 1)]
FULL = {**tiny.SHORT, "adapter.method": "full", "optimizer.learning_rate": 2e-3, "log.samples": 1}
STOP = 4


class Stop(Callback):
    """Ends a run after a step, as Ctrl-C on the second machine would."""

    def after_step(self, event: StepEvent) -> None:
        if event.state.step == STOP:
            event.stopping = f"stopped after step {STOP}"


def interrupted(model: str, data: str, out: str, **settings: Any) -> str:
    try:
        with watched_by(Stop()):
            finetune(model, data, overrides={**FULL, **settings}, out=out)
    except Interrupted as error:
        return error.message
    return "went on"


def refused(model: str, data: str, **settings: Any) -> str:
    try:
        finetune(model, data, overrides={**tiny.SHORT, **settings})
    except ShoestringError as error:
        return str(error)
    return "went on"


def main() -> None:
    folder = Path(sys.argv[1])
    parallel.start()
    rank = parallel.rank()
    disk = folder / f"disk{rank}"
    disk.mkdir()
    os.chdir(disk)
    model, data = str(folder / "model"), str(folder / "sums.jsonl")
    facts: dict[str, Any] = {}
    facts["refused"] = {
        "quantize": refused(model, data, **{"budget.split": FIRST, "quantize.bits": 4}),
        "preserve": refused(model, data, **{"budget.split": FIRST, "preserve.source": data}),
        "ranges": refused(model, data, **{"budget.split": "[[0, 2]]"}),
    }
    lora = finetune(model, data, overrides={**tiny.SHORT, "budget.split": FIRST}, out="lora")
    facts["lora"] = lora.to_json()
    streamed = {"budget.engine": "streamed", "budget.weights": "int8"}
    facts["streamed"] = finetune(
        model, data, overrides={**tiny.SHORT, **streamed, "budget.split": OTHER}, out="streamed"
    ).to_json()
    facts["stopped"] = interrupted(model, data, "full", **{"budget.split": FIRST})
    parallel.wait()
    if rank == 0:
        (disk / "full").rename(disk / "stopped")
        copied = os.system(f"cp -a {disk / 'stopped'} {disk / 'full'}")
        assert copied == 0
    parallel.wait()
    facts["full"] = finetune(resume="full", overrides={"budget.split": OTHER}).to_json()
    recipe = str(folder / "pretrain.yaml")
    facts["pretrained"] = pretrain(recipe, overrides={"budget.split": "[[0, 1], [1, 2]]"}, out="pretrained").to_json()
    with parallel.stages():
        adapter = parallel.from_first(str(disk / "lora" / "latest"))
        for name, place, slots in (("model", model, None), ("adapter", adapter, None), ("from disk", model, 2)):
            language = load_over(place, Split(((0, 2), (2, 3))), slots=slots)
            texts = language.generate(["1+2?", "3"], temperature=0.0, max_tokens=8)
            drawn = language.generate("1", temperature=1.0, seed=3, max_tokens=8)
            score = perplexity(language, str(folder / "text.txt"), context=64)
            likely = [said for said, _ in log_likelihoods(language, LIKELY)]
            facts[name] = [texts, drawn, score.loss, score.tokens, likely]
    (folder / f"{rank}.json").write_text(json.dumps(facts, default=str))


if __name__ == "__main__":
    main()
