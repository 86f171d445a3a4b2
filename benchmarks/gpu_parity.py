"""The cases of `benchmarks.gpu` that compare what a GPU computes with the CPU, or with its definition."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_settings import Settings, adapted, random_batch
from benchmarks.random_models import large_model
from shoestring.data.batch import Batch
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.nn.attention.core import attend_plain
from shoestring.nn.attention.packed import Packed
from shoestring.offload.engine import StreamedEngine
from shoestring.train.objective import next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.resident import ResidentEngine

AGREES = 1e-3  # relative, in float32


def packed_attention(given: Settings) -> dict[str, Any]:
    """The documents' kernel against the definition, forward and backward; on a CPU its mask takes its place."""
    device, tokens = given.device, 64 if given.tiny else 1500
    segments_BT = random_batch(2, tokens, 9, True).segments_BT.to(device)
    found: dict[str, Any] = {}
    for dtype in (torch.float32,) if given.tiny else (torch.float32, torch.bfloat16):
        for window in (None, tokens // 3):
            documents = Packed.of(segments_BT)
            documents = documents if window is None else documents.within(window)
            # Narrow heads do not go through the kernel, and on a CPU nothing else goes backward.
            inputs = [torch.randn(2, heads, tokens, 8 if given.tiny else 64, device=device) for heads in (4, 2, 2)]
            mask = documents.mask_B1TS()
            worst = 0.0
            leaves = [[x.clone().to(kind).requires_grad_() for x in inputs] for kind in (dtype, torch.float32)]
            fast = documents.attend(*leaves[0], 0.125)
            plain = attend_plain(*leaves[1], mask, 0.125)
            weight = torch.randn_like(plain)
            (fast.float() * weight).sum().backward()
            (plain * weight).sum().backward()
            for one, other in [(fast, plain), *((a.grad, b.grad) for a, b in zip(*leaves, strict=True))]:
                worst = max(worst, _distance(one, other))
            found[f"{str(dtype).removeprefix('torch.')}{'' if window is None else ' window'}"] = worst
    exact = max(value for name, value in found.items() if name.startswith("float32"))
    return found | {"agrees": exact < AGREES}


def _distance(one: Any, other: Any) -> float:
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).norm() / other.norm().clamp_min(1e-12))


_LATENT = {"kind": "mla", "heads": 4, "latent_rank": 16, "content_width": 16, "rotary_width": 16, "value_width": 16}
_GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 16}
KINDS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "window": {"attention": {**_GQA, "window": 24}},
    "mla": {"attention": _LATENT},
    "mtla": {"attention": {**_LATENT, "kind": "mtla", "stride": 2}},
    "moe": {"feed_forward": {"kind": "moe", "width": 32, "experts": 4}},
    "reversible": {"block": "reversible"},
    "value_residual": {"value_residual": True},
    "memory": {"memory": {"layers": [1], "top_k": 4, "block": 16, "capacity": 64}},
}


def parity(given: Settings) -> dict[str, Any]:
    """Loss and gradients of every kind, resident and checkpointed, against the CPU's, in float32."""
    length = 24 if given.tiny else 300
    common = {
        "vocabulary": 512, "width": 64, "layers": 2, "context": 512, "attention": _GQA,
        "feed_forward": {"kind": "swiglu", "width": 96},
    }  # fmt: skip
    found: dict[str, Any] = {}
    for kind, changes in KINDS.items():
        config = ModelConfig.model_validate(common | changes)
        batch = random_batch(2, length, 512, True)
        exact = _gradients(config, batch, torch.device("cpu"), "selective")
        for engine, recompute in (("resident", "selective"), ("checkpointed", "full")):
            try:
                found[f"{kind} {engine}"] = _apart(_gradients(config, batch, given.device, recompute), exact)
            except Exception as error:  # of one kind: the others are still compared
                found[f"{kind} {engine}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    numbers = [value for value in found.values() if isinstance(value, float)]
    agrees = len(numbers) == len(found) and max(numbers) < AGREES
    return {"agrees": agrees, "worst": max(numbers, default=None), "kinds": found}


def _gradients(config: ModelConfig, batch: Batch, device: torch.device, recompute: Any) -> tuple[float, list[Any]]:
    decoder = build(config, seed=1).to(device)
    engine = ResidentEngine.around(decoder, next_token, recompute=recompute)
    loss = engine.forward_backward([batch]).mean
    return loss, [parameter.grad for parameter in decoder.parameters() if parameter.requires_grad]


def _apart(found: tuple[float, list[Any]], exact: tuple[float, list[Any]]) -> float:
    """The largest relative distance of the losses or of a gradient."""
    gradients = [_distance(one, other) for one, other in zip(found[1], exact[1], strict=True) if other is not None]
    return max(abs(found[0] - exact[0]) / exact[0], *gradients)


def parity_streamed(given: Settings) -> dict[str, Any]:
    """The streamed engine here against the same on the CPU."""
    with tempfile.TemporaryDirectory() as parent:
        folder = large_model("tiny-streamed", "float32", Path(parent))
        parts = [random_batch(2, 32, 400, True, seed) for seed in range(2)]
        results = []
        for device in (torch.device("cpu"), given.device):
            engine = StreamedEngine(lambda device=device: adapted(folder, device, torch.float32))  # type: ignore[misc]
            engine.load()
            engine.begin(next_token, AdamWConfig())
            loss = engine.forward_backward(parts).mean
            gradients = [p.grad for p in engine.decoder.parameters() if p.grad is not None]
            results.append((loss, [gradient for gradient in gradients if gradient.any()]))
            engine.close()
    apart = _apart(results[1], results[0])
    return {"agrees": apart < AGREES, "worst": apart, "gradients": len(results[0][1])}
