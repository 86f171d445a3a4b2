"""One pass of the calibration text over the whole model, before any of it is pruned: what layers and components of the
residual stream count for (formulas: `compression.prune.importance`), and what norms see.

A norm divides by the root of the mean square over all components. Over fewer it would divide by something else, so its
weights are scaled by the ratio of the two, a geometric mean over some of the text's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.compression.ends import begin
from shoestring.compression.passage import InMemory, MakeKept, Passage
from shoestring.compression.prune.importance import highest
from shoestring.compression.prune.shape import Shape
from shoestring.compression.quantize.gptq import Hessian
from shoestring.compression.read_block import read_block
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.models.builder import allocate, build
from shoestring.models.weight_files import WeightFiles

NORMS = ("attention_norm", "feed_forward_norm")
_SAMPLED = 256  # tokens


@dataclass(frozen=True)
class Kept:
    """layers and components that stay, by their places. scale: of each norm's weights, by the decoder's names in the
    model before. influence: of every layer."""

    layers: tuple[int, ...]
    width: tuple[int, ...] | None
    scale: dict[str, float]
    influence: tuple[float, ...]


class NormView:
    """What one norm saw. size_D: mean of |norm(x)| over tokens. squares_ND: of x, for some tokens."""

    def __init__(self, tokens: int):
        self._every, self._tokens = max(tokens // _SAMPLED, 1), tokens
        self._sum_D: Tensor | None = None
        self._squares: list[Tensor] = []

    def add(self, x_ND: Tensor, normed_ND: Tensor) -> None:
        sum_D = normed_ND.double().abs().sum(0)
        self._sum_D = sum_D if self._sum_D is None else self._sum_D + sum_D
        self._squares.append(x_ND[:: self._every].float().square())

    @property
    def size_D(self) -> Tensor:
        assert self._sum_D is not None
        return self._sum_D / self._tokens

    def scale(self, kept_D: Tensor) -> float:
        """What a norm over these components is to be multiplied by."""
        squares_ND = torch.cat(self._squares)
        ratio_N = squares_ND[:, kept_D].mean(1).clamp_min(1e-30) / squares_ND.mean(1).clamp_min(1e-30)
        return float(ratio_N.log().mean().mul(0.5).exp())


@torch.no_grad()
def survey(
    files: WeightFiles, batches: Sequence[Batch], target: Shape, states: MakeKept = InMemory
) -> Kept:
    """What is kept of the model's layers and width. states: where hidden ones are."""
    config = files.config
    if (target.layers, target.width) == (config.layers, config.width):
        return Kept(tuple(range(config.layers)), None, {}, ())
    passages = begin(batches, build(config, device="meta"), files.places, states)
    tokens = sum(int(passage.there_BT.sum()) for passage in passages)
    views: dict[str, NormView] = {}
    influence = []
    with waiting("prune     looking at layers and width", config.layers) as told:
        for index in range(config.layers):
            block = read_block(files, index)
            seen = {name: NormView(tokens) for name in NORMS}
            influence.append(_pass(block, passages, seen))
            views |= {f"blocks.{index}.{name}": view for name, view in seen.items()}
            told.advance()
        norm = build(config, device="meta").norm
        allocate(norm, "cpu")
        place = files.places["norm.weight"]
        place.file.read_into(place.tensor, norm.get_parameter("weight"))
        views["norm"] = NormView(tokens)
        for passage in passages:
            x_ND = passage.hidden_BTD[passage.there_BT]
            views["norm"].add(x_ND, norm(x_ND))
    layers = highest(torch.tensor(influence), target.layers).tolist()
    if target.width == config.width:
        return Kept(tuple(layers), None, {}, tuple(influence))
    seen = {name: view for name, view in views.items() if name == "norm" or int(name.split(".")[1]) in layers}
    kept_D = highest(torch.stack([view.size_D for view in seen.values()]).sum(0), target.width)
    scale = {name: view.scale(kept_D) for name, view in seen.items()}
    return Kept(tuple(layers), tuple(kept_D.tolist()), scale, tuple(influence))


@torch.no_grad()
def moments_behind_norms(block: nn.Module, passages: Sequence[Passage]) -> dict[str, Tensor]:
    """Second moments of what each norm of a block gives, [D, D]; the passages are brought behind the block."""
    found = {name: Hessian(len(block.get_parameter(f"{name}.weight"))) for name in NORMS}
    there_BT: Tensor = torch.empty(0)

    def watch(moments: Hessian) -> Any:
        return lambda module, inputs, output: moments.add(output[there_BT])

    handles = [block.get_submodule(name).register_forward_hook(watch(moments)) for name, moments in found.items()]
    try:
        for passage in passages:
            there_BT = passage.there_BT
            passage.hidden_BTD = block(passage.hidden_BTD, passage.context)[0]
    finally:
        for handle in handles:
            handle.remove()
    return {name: moments.sum_II for name, moments in found.items()}


def _pass(block: nn.Module, passages: Sequence[Passage], seen: dict[str, NormView]) -> float:
    """Bring the passages behind the block; -> its influence."""
    there_BT: Tensor = torch.empty(0)

    def watch(view: NormView) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            view.add(inputs[0][there_BT], output[there_BT])

        return see

    handles = [block.get_submodule(name).register_forward_hook(watch(view)) for name, view in seen.items()]
    cosines, tokens = 0.0, 0
    try:
        for passage in passages:
            there_BT, before_BTD = passage.there_BT, passage.hidden_BTD
            after_BTD = block(before_BTD, passage.context)[0]
            cosine_N = F.cosine_similarity(before_BTD[there_BT], after_BTD[there_BT], dim=-1)
            cosines, tokens = cosines + float(cosine_N.double().sum()), tokens + len(cosine_N)
            passage.hidden_BTD = after_BTD
    finally:
        for handle in handles:
            handle.remove()
    return 1 - cosines / max(tokens, 1)
