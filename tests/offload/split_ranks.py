"""One of several gloo processes over which the models of `split_cases` are split; a script, so that torch is imported
once for all cases.

    python -m tests.offload.split_ranks OUT CASE...   (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT as torchrun sets them)

OUT/../models/CASE are read; OUT/CASE-RANK.safetensors and OUT/RANK.json are written.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from shoestring.offload.pipeline.engine import PipelineEngine
from shoestring.offload.pipeline.load import fresh_part, load_part, open_streamed_part
from shoestring.offload.pipeline.place import Place
from shoestring.plan.ranges import Split
from shoestring.train import parallel
from tests.offload import split_cases

RANGES = {2: ((0, 3), (3, 4)), 3: ((0, 1), (1, 3), (3, 4))}


def run(name: str, place: Place, out: Path) -> dict:
    case = split_cases.CASES[name]
    model = out.parent / "models" / name

    def make():
        if case.streamed is not None:
            part = open_streamed_part(model, place, case.streamed, dtype=case.dtype)
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


def main() -> None:
    out, *names = Path(sys.argv[1]), *sys.argv[2:]
    torch.set_num_threads(1)
    parallel.start()
    rank, world = parallel.rank(), parallel.world_size()
    place = Place.of(Split(RANGES[world], 4), rank)
    facts, seconds = {}, {}
    with parallel.stages():
        for name in names:
            started = time.perf_counter()
            facts[name] = run(name, place, out)
            seconds[name] = time.perf_counter() - started
        config = split_cases.ModelConfig.model_validate(split_cases.SHAPE)
        fresh = fresh_part(config, place, seed=5)
        save_file(dict(fresh.named_parameters()), out / f"fresh-{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps({"facts": facts, "seconds": seconds}))


if __name__ == "__main__":
    main()
