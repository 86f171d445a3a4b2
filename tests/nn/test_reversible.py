"""Reversible blocks: gradients of plain autograd, memory that depth does not raise, what a second run repeats."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.replay import replayed


def config(layers: int = 3, **changes) -> ModelConfig:
    return ModelConfig.model_validate({
        "vocabulary": 61, "width": 32, "layers": layers, "context": 64, "block": "reversible",
        "attention": {"heads": 4, "kv_heads": 2, "head_width": 8}, "feed_forward": {"width": 48}, **changes,
    })  # fmt: skip


def model(layers: int = 3, dtype: torch.dtype = torch.float64, **changes) -> Decoder:
    decoder = build(config(layers, **changes), seed=0, dtype=dtype)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return decoder


def tokens(rows: int = 2, count: int = 9) -> torch.Tensor:
    return torch.randint(0, 61, (rows, count), generator=torch.Generator().manual_seed(0))


def gradients(decoder: Decoder, plain: bool) -> dict[str, torch.Tensor]:
    """Of one scalar of the decoder's output; plain: through ordinary autograd."""
    decoder.zero_grad()
    run = decoder._stack
    if plain:
        decoder._stack = lambda blocks, x, context, cache, recompute: run.plain(blocks, x, context, cache)
    hidden, aux = decoder(tokens())
    decoder._stack = run
    (hidden.double().pow(2).sum() + sum(aux.values())).backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerances) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert_close(one[name], other[name], msg=lambda text, name=name: f"{name}: {text}", **tolerances)


KINDS = {
    "plain": {},
    "shared": {"sharing": {"unique_layers": 2}, "layers": 4},
    "low rank": {"linear": {"kind": "low_rank", "rank": 3}},
    "bottlenecks": {"bottleneck": {"width": 4}},
    "experts": {"feed_forward": {"kind": "moe", "width": 16, "experts": 4}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_gradients_are_those_of_plain_autograd(kind, mode):
    decoder = model(**KINDS[kind])
    decoder.activation_checkpointing = mode
    assert_same(gradients(decoder, plain=False), gradients(decoder, plain=True))


def test_float32_gradients_are_close_to_plain_ones():
    decoder = model(layers=6, dtype=torch.float32)
    assert_same(gradients(decoder, False), gradients(decoder, True), rtol=2e-3, atol=2e-3)


def kept_bytes(decoder: Decoder) -> int:
    """Bytes that autograd keeps for the backward pass: weights not counted, shared memory counted once."""
    weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = decoder(tokens())[0]
    assert hidden.requires_grad
    return sum(kept.values())


def test_kept_bytes_do_not_grow_with_depth():
    sizes = [kept_bytes(model(layers)) for layers in (2, 4, 8)]
    assert sizes[0] == sizes[1] == sizes[2] > 0
    plain = [kept_bytes(model(layers, block="sequential")) for layers in (2, 4, 8)]
    assert plain[2] > 1.8 * plain[1] > 3 * sizes[0], "the control: sequential blocks keep something in each layer"


class Dropping(nn.Module):
    """A feed-forward with dropout, for what random numbers do."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y, aux = self.inner(x)
        return nn.functional.dropout(y, 0.5), aux


def test_dropout_draws_the_same_numbers_in_the_second_run():
    decoder = model()
    for block in decoder.blocks:
        block.feed_forward = Dropping(block.feed_forward)
    found = []
    for plain in (False, True):
        torch.manual_seed(5)
        found.append(gradients(decoder, plain))
        after = torch.rand(())
    assert_same(*found)
    torch.manual_seed(5)
    decoder(tokens())
    assert torch.rand(()) == after, "the backward pass must leave the generator where the forward pass had left it"


def test_choices_of_the_first_run_are_replayed_when_the_rebuilt_inputs_would_choose_otherwise():
    class Choosing(nn.Module):
        """Scales by a choice that is another one each time it is made."""

        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.made = inner, 0

        def choose(self) -> int:
            self.made += 1
            return self.made

        def forward(self, x):
            factor = replayed(self.choose)
            y, aux = self.inner(x)
            return y * factor, aux

    decoder = model(layers=2)
    for block in decoder.blocks:
        block.feed_forward = Choosing(block.feed_forward)
    once = gradients(decoder, plain=False)
    assert [block.feed_forward.made for block in decoder.blocks] == [1, 1]
    for block in decoder.blocks:
        block.feed_forward.made = 0
    assert_same(once, gradients(decoder, plain=True))


def test_autocast_of_the_first_run_is_restored_in_the_second():
    seen = []
    decoder = model(dtype=torch.float32)
    decoder.blocks[1].attention.output.register_forward_hook(lambda _, i, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = decoder(tokens())[0]
    hidden.float().sum().backward()
    assert seen == [torch.bfloat16] * 2


def test_streams_are_float32_when_the_weights_are_not():
    decoder = model(dtype=torch.bfloat16)
    seen = []
    decoder.blocks[1].attention_norm.register_forward_hook(lambda _, inputs, o: seen.append(inputs[0].dtype))
    hidden = decoder(tokens())[0]
    hidden.float().sum().backward()
    assert hidden.dtype == torch.bfloat16 and set(seen) == {torch.float32}


def test_a_frozen_embedding_under_a_trained_factor_still_gives_its_gradient():
    decoder = model()
    decoder.requires_grad_(False)
    linear = decoder.blocks[1].attention.query
    made = LowRankLinear(linear.in_features, linear.out_features, 2).double()
    made.initialize(torch.Generator().manual_seed(0), 0.1)
    decoder.blocks[1].attention.query = made
    rebuilt, plain = gradients(decoder, False), gradients(decoder, True)
    assert len(rebuilt) == 2 and all(g.abs().max() > 0 for g in rebuilt.values())
    assert_same(rebuilt, plain)


def test_going_backward_twice_gives_the_same():
    decoder = model()
    hidden = decoder(tokens())[0].sum()
    weight = decoder.blocks[0].attention.query.weight
    first = torch.autograd.grad(hidden, weight, retain_graph=True)[0]
    assert_close(torch.autograd.grad(hidden, weight)[0], first)


def test_a_cache_is_appended_to_once_even_with_gradients():
    decoder, given = model(), tokens()
    cache = decoder.new_cache(2, 16)
    calls = []
    decoder.blocks[0].attention.register_forward_hook(lambda *_: calls.append(1))
    decoder(given, cache=cache)[0].sum().backward()
    assert calls == [1] and cache.lengths == [9, 9]


def compare_under_distributed_data_parallel(rendezvous: str) -> None:
    """In a process of its own: torch deadlocks when a reducer outlives its process group under Python's lock."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    decoder = model(sharing={"unique_layers": 2}, layers=4)
    expected = gradients(decoder, plain=True)
    decoder.zero_grad()
    wrapped = nn.parallel.DistributedDataParallel(decoder)
    wrapped(tokens())[0].pow(2).sum().backward()
    assert_same({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}, expected)
    print("same gradients", flush=True)
    os._exit(0)


def test_it_trains_under_distributed_data_parallel(tmp_path):
    code = f"from {__name__} import *; compare_under_distributed_data_parallel({str(tmp_path / 'rendezvous')!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout == "same gradients\n", done.stderr


def test_going_backward_imports_no_symbolic_algebra():
    """torch does for gradients that are given to it: 35 MB."""
    script = f"""
import sys
from {__name__} import *
decoder = model(dtype=torch.float32)
decoder(tokens())[0].sum().backward()
assert all(parameter.grad is not None for parameter in decoder.blocks.parameters())
print("sympy" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert ran.stdout.split() == ["False"], ran.stderr
