"""One of several gloo processes, for test_fsdp.py; a script, so that torch is imported once for all facts.

    python -m tests.train.divided_ranks RANK WORLD PORT FOLDER -> FOLDER/RANK.json
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.data.batch import Batch
from shoestring.pretraining.job import pretrain
from shoestring.train import exchange, parallel
from shoestring.train.checkpoint import checkpoints
from shoestring.train.exact_weights import load_trained, read_trained
from shoestring.train.fsdp import FsdpEngine
from shoestring.train.loss_scale import LossScale
from shoestring.train.objective import NextToken, next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.precision_config import LossScaleConfig
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

rank, world, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
UNTIED = {"tied_head": False, "layers": 3}
facts: dict = {}


def batches(step: int) -> list[Batch]:
    """Two microbatches of one row each; the second rank's last one has no labels."""
    found = [tiny.rows_of(tiny.batch(2 * world, ignored=0.5, seed=10 * step + n), rank, rank + 1) for n in range(2)]
    if rank == 1:
        found[-1].labels_BT.fill_(tiny.IGNORED)
    return found


def whole(engine: ResidentEngine) -> dict[str, Tensor]:
    if not isinstance(engine, FsdpEngine):
        return {name: weight.detach() for name, weight in engine.decoder.named_parameters()}
    engine.parts.settle()
    return {name: w.full_tensor() for name, w in zip(engine.parts.names, engine.parts.weights, strict=True)}


def trained(kind: type[ResidentEngine], shape: dict, steps: int = 4, clip: float = 0.5, **settings) -> dict:
    engine = kind(lambda: tiny.model(**shape), **settings)
    engine.load()
    engine.begin(next_token, AdamWConfig(learning_rate=3e-3))
    losses, norms, skipped = [], [], []
    for step in range(steps):
        losses.append(engine.forward_backward(batches(step)).mean)
        result = engine.optimizer_step(clip, 1.0)
        norms.append(result.norm)
        skipped.append(result.skipped)
    scale = None if engine.loss_scale is None else engine.loss_scale.scale
    return {"losses": losses, "norms": norms, "skipped": skipped, "scale": scale, "weights": whole(engine)}


def compared(name: str, shape: dict, **settings) -> None:
    """The same steps with a whole model in each process and with a part in each."""
    one, parts = (trained(kind, shape, **settings) for kind in (ResidentEngine, FsdpEngine))
    far = max(float((a - parts["weights"][key]).abs().max()) for key, a in one.pop("weights").items())
    parts.pop("weights")
    facts[name] = {"ddp": one, "fsdp": parts, "far": far}


def half(name: str, initial: float) -> None:
    scales = [LossScale(LossScaleConfig(initial=initial)) for _ in range(2)]
    one = trained(ResidentEngine, {}, compute=torch.float16, loss_scale=scales[0])
    parts = trained(FsdpEngine, {}, compute=torch.float16, loss_scale=scales[1])
    one.pop("weights"), parts.pop("weights")
    facts[name] = {"ddp": one, "fsdp": parts}


def overlap() -> None:
    """In which microbatch each sum began, and how many had begun when the passes backward were over."""
    passes, begun = [0], []

    class Counted(NextToken):
        def __call__(self, *arguments):
            passes[0] += 1
            return super().__call__(*arguments)

    all_reduce, finish = dist.all_reduce, exchange.Exchange.finish

    def counted(tensor, *arguments, async_op=False, **settings):
        if async_op:
            begun.append(passes[0])
        return all_reduce(tensor, *arguments, async_op=async_op, **settings)

    def at_the_end(self):
        facts["begun"] = list(begun)
        finish(self)

    sizes, dist.all_reduce, exchange.Exchange.finish = (exchange.LARGE, exchange.TOGETHER), counted, at_the_end
    exchange.LARGE, exchange.TOGETHER = 1000, 2000
    try:
        engine = ResidentEngine.around(tiny.model(), Counted())
        engine.forward_backward([tiny.batch(1, seed=10 * rank + n) for n in range(3)])
    finally:
        (exchange.LARGE, exchange.TOGETHER), dist.all_reduce, exchange.Exchange.finish = sizes, all_reduce, finish
    facts["begun in all"] = len(begun)


def memory() -> None:
    """Numbers that this process keeps of a model whose rows do not divide evenly."""
    engine = FsdpEngine(lambda: tiny.model(vocabulary=301))
    engine.load()
    engine.begin(next_token, AdamWConfig())
    facts["kept"] = [sum(p.numel() for p in engine.parts.local), engine.decoder.parameter_count()]
    facts["moments"] = sum(t.numel() for t in engine.state().tensors.values() if t.ndim)


def predicted() -> None:
    """The most that lay in tensors of a model large enough to tell, and what the plan said of it."""
    shape = {"width": 256, "layers": 4, "context": 128, "attention.heads": 4, "feed_forward.width": 768}
    settings = {f"model.{name}": value for name, value in shape.items()}
    settings |= {"train.sequence_length": 128, "train.batch_tokens": 1024, "train.steps": 1, "schedule.warmup": 0}
    settings |= {"precision.compute": "float32", "parallel.kind": "fsdp"}
    result = pretrain(f"{folder}/recipe.yaml", out=f"{folder}/large", overrides=settings)
    facts["tensors"] = [result.tensor_memory, result.predicted_tensor_memory]


def waits() -> None:
    items = list(parallel.in_step(range(rank + 1)))
    facts["in step"] = items


def runs() -> None:
    for kind in ("ddp", "fsdp"):
        settings = {"parallel.kind": kind, "precision.compute": "float32", "log.samples": 1}
        result = pretrain(f"{folder}/recipe.yaml", out=f"{folder}/{kind}", overrides=settings)
        facts[kind] = [result.steps, result.bits_per_byte]
    settings |= {"precision.compute": "bfloat16", "train.steps": 2}  # samples by blocks that are gathered in it
    pretrain(f"{folder}/recipe.yaml", out=f"{folder}/half", overrides=settings)


def changed() -> None:
    """A run of whole models, killed after its first checkpoint, goes on in parts."""
    out = Path(folder, "changed")
    if rank == 0:
        shutil.copytree(f"{folder}/ddp", out, symlinks=True)
        for path in checkpoints(out)[1:]:
            shutil.rmtree(path)
    parallel.wait()
    pretrain(resume=out, parallel__kind="fsdp")


def read_back() -> None:
    """The weights of a checkpoint into a live model in parts, as a run does that goes back."""
    saved = Path(folder, "ddp", "latest")
    engine = FsdpEngine(lambda: load_trained(saved, "cpu"))
    decoder = engine.load()
    for part in engine.parts.local:
        part.detach().fill_(7.0)
    read_trained(decoder, saved)
    expected = dict(load_trained(saved, "cpu").named_parameters())
    facts["read back"] = all(tensor.equal(expected[name]) for name, tensor in whole(engine).items())


torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
predicted()  # while nothing else is there
compared("tied", {})
compared("untied", UNTIED)
compared("checkpointed", {}, recompute="full")
compared("values", {"value_residual": True})
half("float16", 2.0**10)
half("overflow", 2.0**24)
overlap()
memory()
waits()
runs()
changed()
read_back()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(facts, file)
dist.destroy_process_group()
