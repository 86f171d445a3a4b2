"""What a step asks of a GPU's numbers while it runs: each such question waits for all of the GPU's work.

The meta device stands for the GPU: its tensors have no numbers, so most questions are errors there. A dispatch mode
finds the rest by the operations that would ask, and copies that would wait.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from shoestring.core import torch_features
from shoestring.data.batch import IGNORED, PADDING_SEGMENT, Batch, layout_of, one_row
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn import moe
from shoestring.nn.attention import packed
from shoestring.nn.attention.core import attend_plain
from shoestring.nn.lora_config import LoRAConfig
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine, forward_loss
from tests.train import tiny

GPU = torch.device("meta")
aten = torch.ops.aten
# They read numbers, or their result's shape does.
ASKING = {
    aten._local_scalar_dense, aten.nonzero, aten.nonzero_static, aten.masked_select, aten.is_nonzero, aten.equal,
    aten.bincount, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.histc,
}  # fmt: skip
MASK_KINDS = {torch.bool, torch.uint8}


class Waits(TorchDispatchMode):
    """asked: the operations of a pass that would wait for a GPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation, flat = func.overloadpacket, [*torch.utils._pytree.tree_leaves((args, kwargs))]
        on_gpu = any(isinstance(x, torch.Tensor) and x.device == GPU for x in flat)
        if on_gpu and operation in ASKING:
            self.asked.append(str(func))
        if operation in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and on_gpu:
            if any(isinstance(x, torch.Tensor) and x.dtype in MASK_KINDS for x in args[1]):
                self.asked.append(f"{func} by a mask")
        if operation is aten._to_copy and not kwargs.get("non_blocking"):
            device = kwargs.get("device", args[0].device)
            if (args[0].device == GPU) != (device == GPU):
                self.asked.append(f"{func} between devices")
        if operation is aten.copy_ and args[0].device != args[1].device:
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
                self.asked.append(f"{func} between devices")
        return func(*args, **kwargs)


@pytest.fixture
def gpu(monkeypatch):
    """The meta device takes autocast (off), and the documents' kernel, as CUDA does."""
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    autocast = torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and enabled(kind))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.float32 if kind == "meta" else dtype(kind))
    monkeypatch.setattr(
        torch, "autocast",
        lambda kind, **given: contextlib.nullcontext() if kind == "meta" else autocast(kind, **given),
    )  # fmt: skip
    monkeypatch.setattr(torch_features, "flex_attention", lambda device: device == GPU)
    calls = []

    def kernel(q, k, v, block_mask, scale, enable_gqa):
        calls.append(block_mask)
        tokens = torch.arange(q.shape[2], device=q.device)
        sees = block_mask.mask_mod(torch.arange(len(q), device=q.device)[:, None, None], 0, tokens[:, None], tokens)
        return attend_plain(q, k, v, sees.unsqueeze(1), scale)

    monkeypatch.setattr(packed, "kernel", lambda: kernel)
    return calls


def documents(ignored: bool = True) -> Batch:
    """Two rows of several documents, the second with padding; some labels do not count."""
    batch = tiny.batch(2, 16, ignored=0.4 if ignored else 0.0)
    lengths = [[5, 4, 7], [3, 8, 5]]
    batch.positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    batch.segments_BT = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths])
    batch.segments_BT[1, 11:], batch.labels_BT[1, 11:] = PADDING_SEGMENT, IGNORED
    return batch


MLA = {"kind": "mla", "heads": 2, "latent_rank": 8, "content_width": 16, "rotary_width": 8, "value_width": 16}
WINDOW = {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 16, "window": 4}
MEMORY = {"layers": [1], "top_k": 2, "block": 4, "capacity": 8}
KINDS: dict[str, dict] = {
    "gqa": {},
    "window": {"attention": WINDOW},
    "mla": {"attention": MLA},
    "mtla": {"attention": {**MLA, "kind": "mtla", "stride": 2}},
    "moe": tiny.EXPERTS,
    "moe, biased": {"feed_forward": {**tiny.EXPERTS["feed_forward"], "balance": "bias", "shared_width": 8}},
    "reversible": {"block": "reversible"},
    "value residual": {"value_residual": True},
    "memory": {"memory": MEMORY},
    "shared": {"sharing": {"unique_layers": 1, "order": "cycle"}},
    "low rank": {"linear": {"kind": "low_rank", "rank": 4}},
    "gelu, learned": {"feed_forward": {"kind": "gelu", "width": 48}, "position": {"kind": "learned"}},
    "convolution": {"embedding_convolution": 3},
    "squared relu, softcap": {"feed_forward": {"kind": "relu2", "width": 48}, "logit_softcap": 5.0},
}


def waits(model, batch: Batch) -> list[str]:
    """Of forward, objective and backward, once the batch is on its way."""
    with Waits() as found:
        loss, aux = forward_loss(model, next_token, batch, memory=model.new_memory(len(batch.tokens_BT)))
        (loss.sum + sum(aux.values())).backward()
    return found.asked


@pytest.fixture
def sizes_read(monkeypatch):
    """Stands for what experts ask: how many tokens each has."""
    asked = []

    def read(counts_E):
        asked.append(counts_E)
        tokens, experts = 2 * 16 * 2, len(counts_E)
        return [tokens // experts] * experts

    monkeypatch.setattr(moe, "read_sizes", read)
    return asked


@pytest.mark.parametrize(
    "kind, recompute", [*((kind, "selective") for kind in KINDS), ("gqa", "none"), ("moe", "full"), ("memory", "full")]
)
def test_a_pass_of_any_kind_asks_nothing_and_experts_once_a_layer(kind, recompute, gpu, sizes_read):
    model = build(ModelConfig.model_validate(tiny.SHAPE | KINDS[kind]), seed=0)
    model.activation_checkpointing = recompute
    batch = documents().to(GPU)
    assert waits(model.to(GPU), batch) == []
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert len(sizes_read) == (model.config.layers if kind.startswith("moe") else 0)
    masks = {id(mask) for mask in gpu}
    assert len(masks) == (0 if kind == "mtla" else 1), "one block mask for all layers"


@pytest.mark.parametrize("method", [{}, {"dora": True}, {"dropout": 0.1}])
def test_adapters_under_a_frozen_head_ask_nothing(method, gpu):
    model = tiny.model()
    attach(model, LoRAConfig(rank=2, alpha=4, **method), seed=0)
    model.train().to(GPU)
    assert model.head.frozen and waits(model, documents().to(GPU)) == []


def test_what_does_ask_is_found():
    """Or the tests above would hold of nothing."""
    x = torch.ones(4, device=GPU)
    with Waits() as found:
        for ask in (
            lambda: x.sum().item(), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.masked_select(x > 0),
            lambda: x.cpu(), lambda: torch.ones(4).to(GPU), lambda: bool(x.any()), lambda: torch.bincount(x.long()),
        ):  # fmt: skip
            with contextlib.suppress(NotImplementedError, RuntimeError):
                ask()
    assert len(found.asked) >= 8, found.asked


@pytest.mark.parametrize("kind", ["gqa", "window", "mla", "mtla", "memory", "moe"])
def test_a_layout_changes_nothing(kind):
    """The same loss and gradients with what was read before as without it."""
    results = []
    for known in (False, True):
        model = build(ModelConfig.model_validate(tiny.SHAPE | KINDS[kind]), seed=0, dtype=torch.float64)
        batch = documents()
        batch.layout = layout_of(batch) if known else None
        loss, _ = forward_loss(model, next_token, batch, memory=model.new_memory(2))
        loss.sum.backward()
        results.append((loss.count, loss.sum.detach(), [parameter.grad for parameter in model.parameters()]))
    (count, one, gradients), (other_count, other, others) = results
    assert count == other_count == int((documents().labels_BT != IGNORED).sum())
    assert_close(one, other, rtol=0, atol=0)
    for gradient, another in zip(gradients, others, strict=True):
        assert_close(gradient, another)


def test_batches_as_one_row_have_the_layout_of_that_row():
    batches = [documents(), documents(ignored=False), tiny.batch(2, 16, seed=3)]
    plain = one_row(batches)
    for batch in batches:
        batch.layout = layout_of(batch)
    joined, again = one_row(batches).layout, layout_of(plain)
    assert joined.count == again.count
    assert_close(joined.counted_N, again.counted_N)
    assert (joined.positions_BT == again.positions_BT).all()
    # Neighbours of one segment number, of two rows, are one run to `again`: the borders that it has are there too.
    assert {start for _, start, _ in again.documents} <= {start for _, start, _ in joined.documents}
    assert [end for *_, end in joined.documents][-1] == plain.tokens_BT.shape[1]


def test_a_step_reads_the_loss_after_all_its_microbatches(monkeypatch):
    order = []
    model = tiny.model(**tiny.EXPERTS)
    forward, read = type(model).forward, torch.Tensor.__float__
    monkeypatch.setattr(type(model), "forward", lambda *some, **named: order.append("pass") or forward(*some, **named))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda x: order.append("read") or read(x))
    ResidentEngine.around(model, next_token).forward_backward([tiny.batch(1, seed=n) for n in range(3)])
    assert order[:3] == ["pass"] * 3 and set(order[3:]) == {"read"} and len(order) > 3
