"""One of several gloo processes over which the models of `split_cases` are split; a script, so that torch is imported
once for all cases.

    python -m tests.offload.split_ranks OUT CASE...   (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun sets them)

OUT/../models/CASE are read; OUT/CASE-RANK.safetensors and OUT/RANK.json are written.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from shoestring.offload.pipeline import gather
from shoestring.offload.pipeline.engine import PipelineEngine
from shoestring.offload.pipeline.load import fresh_part, load_part, open_streamed_part
from shoestring.offload.pipeline.place import Place
from shoestring.plan.ranges import Split
from shoestring.train import parallel
from shoestring.train.objective import NextToken, next_token
from tests.offload import split_cases

RANGES = {2: ((0, 3), (3, 4)), 3: ((0, 1), (1, 3), (3, 4))}


def run(name: str, place: Place, out: Path) -> dict:
    case = split_cases.CASES[name]
    model = out.parent / "models" / name

    def make():
        if case.streamed is not None:
            part = open_streamed_part(model, place, case.streamed, dtype=case.dtype, keeps=case.keeps)
        else:
            trained = case.adapter is None
            part = load_part(model, place, dtype=case.dtype, quantized=case.quantized, trained=trained)
        return split_cases.adapted(part, case)

    engine = PipelineEngine(make, case.compute, case.recompute, streams=case.streamed is not None)
    held = sorted(name for name, _ in engine.load().named_parameters())
    figures, gradients = split_cases.train(engine, case)
    engine.state()
    weights = {}
    if place.is_first:
        weights = {f"weights/{name}": tensor for name, tensor in split_cases.trained(engine.whole()).items()}
    save_file({**gradients, **weights}, out / f"{name}-{place.rank}.safetensors")
    decoder = engine.decoder.eval()
    tokens = split_cases.batches(0)[0].tokens_BT[:1]
    with torch.no_grad():
        hidden, _ = decoder(tokens)
        logits = decoder.head(hidden)
        cache, found = decoder.new_cache(1, 24), tokens[0, :6].tolist()
        fed = found
        for _ in range(6):
            fed = [int(decoder.next_logits(torch.tensor([fed]), [len(fed) - 1], cache.rows([0], [len(fed)])).argmax())]
            found = found + fed
    times = engine.times
    engine.close()
    return {
        "figures": figures, "held": held, "tokens": found, "logits": logits[0, -1].tolist(),
        "times": [times.work, times.waiting, times.network], "sent": times.sent,
    }  # fmt: skip


class TooLarge(NextToken):
    """The last machine's memory does not suffice for a microbatch."""

    def __call__(self, hidden_BTD, head, batch):
        raise RuntimeError("no memory is left")


def engine_of(place: Place, objective: NextToken) -> PipelineEngine:
    part = fresh_part(split_cases.ModelConfig.model_validate(split_cases.SHAPE), place, seed=5)
    return PipelineEngine.around(part, objective)


def too_large(place: Place) -> str:
    """How a step ends that one machine cannot do."""
    try:
        engine_of(place, TooLarge()).forward_backward(split_cases.batches(0))
    except RuntimeError as error:
        return type(error).__name__
    return "done"


def lost(place: Place) -> list:
    """How a step ends, and when, whose last machine is gone."""
    engine = engine_of(place, next_token)
    if place.is_last:
        return []
    started = time.perf_counter()
    try:
        engine.forward_backward(split_cases.batches(0))
    except parallel.Lost as error:
        return [error.message, time.perf_counter() - started]
    return ["done", 0.0]


def main() -> None:
    out, *names = Path(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    parallel.start()
    rank, world = parallel.rank(), parallel.world_size()
    place = Place.of(Split(RANGES[world], 4), rank)
    facts = {}
    if world == 3:  # as if all were too much for the first one's memory
        gather._IN_MEMORY = 0
    with parallel.stages():
        for name in names:
            facts[name] = run(name, place, out)
        config = split_cases.ModelConfig.model_validate(split_cases.SHAPE)
        fresh = fresh_part(config, place, seed=5)
        save_file(dict(fresh.named_parameters()), out / f"fresh-{rank}.safetensors")
        ends = {"too large": too_large(place), "lost": lost(place)}
    (out / f"{rank}.json").write_text(json.dumps({"facts": facts, "ends": ends}))
    os._exit(0)  # without the good-bye of torch.distributed to one that has gone


if __name__ == "__main__":
    main()
