"""A mixture of SwiGLU experts (Switch, arXiv 2101.03961; Mixtral, arXiv 2401.04088).

x_BTD -> (y_BTD, aux). A softmax over E experts chooses k of them for each token; their outputs are summed with its
weights. Tokens are sorted by expert, so each expert runs once on its own contiguous rows and the work is k
experts per token; `mixture_plain`, which runs every expert on every token, is the twin.
The choice goes through `nn.replay`: a recomputed layer sends its tokens the same way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoestring.core.filled import FILLED, filled
from shoestring.core.matmul import halved
from shoestring.nn.feed_forward import Aux, MakeLinear, SwiGLU
from shoestring.nn.feed_forward_config import MoEConfig, SwiGLUConfig
from shoestring.nn.linear import Linear, linear
from shoestring.nn.replay import replayed


class _ToExperts(torch.autograd.Function):
    """x [N, D] -> [N·k, D], rows in the order of their experts. The gradient needs no atomic additions."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor, active: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.active = active
        return x.index_select(0, order // active)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (inverse,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, inverse)
        return gradient.unflatten(0, (-1, ctx.active)).sum(1), None, None, None


class _ToTokens(torch.autograd.Function):
    """y [N·k, D] in the order of the experts -> in the order of the tokens."""

    @staticmethod
    def forward(ctx, y: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return y.index_select(0, inverse)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        order, inverse = ctx.saved_tensors
        if len(order) == len(inverse):
            return gradients[0].index_select(0, order), None, None
        y = gradients[0].new_zeros(len(order), *gradients[0].shape[1:])  # rows that fill an expert's up have none
        return y.index_copy_(0, inverse, gradients[0]), None, None


def count_choices(chosen: Tensor, experts: int) -> Tensor:
    """How many of the choices fell on each expert, int64 [E]."""
    if chosen.is_cpu:
        return torch.bincount(chosen, minlength=experts)
    # bincount would wait for a GPU, to look for numbers that are too large.
    return chosen.new_zeros(experts).scatter_add_(0, chosen, torch.ones_like(chosen))


def read_sizes(counts_E: Tensor) -> list[int]:
    """Into Python, since shapes depend on them: the one place in a layer's pass that waits for a GPU."""
    return counts_E.tolist()


def filled_up(x: Tensor, rows: float) -> bool:
    """Whether experts are given rows in numbers that repeat (`filled`). rows: of an expert, on average."""
    return rows >= FILLED and halved(x)


def fill_up(
    order: Tensor, inverse: Tensor, chosen: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """The same with rows of the first choice behind those of each expert, so that their number is `filled`.

    chosen: the expert of each choice. -> order [P], where each choice stands in it [N·k], sizes.
    """
    whole = [filled(size) for size in sizes]
    more_E = torch.tensor([0, *(new - old for new, old in zip(whole, sizes, strict=True))][:-1]).cumsum(0)
    inverse = inverse + more_E[chosen]
    order = order.new_zeros(sum(whole))
    order[inverse] = torch.arange(len(inverse))
    return order, inverse, whole


class Router(nn.Module):
    """x [N, D] -> logits [N, E], float32 at least. No linear that could be adapted or quantized: small differences
    decide here."""

    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.uniform_(self.weight, -(width**-0.5), width**-0.5)  # as `nn.Linear`'s

    def forward(self, x_ND: Tensor) -> Tensor:
        exact = torch.promote_types(x_ND.dtype, torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            return linear(x_ND.to(exact), self.weight.to(exact))


class MixtureOfExperts(nn.Module):
    """aux: "expert_balance", the load-balance loss; or "expert_bias", see `update_expert_biases`."""

    def __init__(self, config: MoEConfig, width: int, make_linear: MakeLinear = Linear):
        super().__init__()
        self.config = config
        expert = SwiGLUConfig(width=config.width)
        self.router = Router(width, config.experts)
        self.experts = nn.ModuleList(SwiGLU(expert, width, make_linear) for _ in range(config.experts))
        self.shared = None
        if config.shared_width:
            self.shared = SwiGLU(SwiGLUConfig(width=config.shared_width), width, make_linear)
        self.choice_bias = nn.Parameter(torch.zeros(config.experts)) if config.balance == "bias" else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Aux]:
        x_ND = x_BTD.flatten(0, -2)
        probabilities_NE, chosen_Nk, weights_Nk = self.route(x_ND)
        flat = chosen_Nk.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=order.device)
        sizes = replayed(lambda: read_sizes(count_choices(flat, len(self.experts))))
        if filled_up(x_ND, len(flat) / len(sizes)):
            order, inverse, sizes = fill_up(order, inverse, flat, sizes)
        parts = _ToExperts.apply(x_ND, order, inverse, self.config.active).split(sizes)
        # An expert without tokens still runs when training, on nothing: its gradients are zeros, not missing.
        outputs = [
            expert(part)[0]
            for expert, part in zip(self.experts, parts, strict=True)
            if len(part) or torch.is_grad_enabled()
        ]
        y_NkD = _ToTokens.apply(torch.cat(outputs), order, inverse).view(*chosen_Nk.shape, x_ND.shape[-1])
        y_ND = (weights_Nk.to(y_NkD.dtype).unsqueeze(1) @ y_NkD).squeeze(1)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)[0]
        return y_ND.view(x_BTD.shape), self._aux(probabilities_NE, chosen_Nk)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> probabilities [N, E], chosen experts [N, k], their weights [N, k]; float32 at least."""
        probabilities_NE = self.router(x_ND).softmax(-1)
        chosen_Nk = replayed(lambda: self._choose(probabilities_NE.detach()))
        weights_Nk = probabilities_NE.gather(1, chosen_Nk)
        if self.config.normalize:
            weights_Nk = weights_Nk / weights_Nk.sum(-1, keepdim=True)
        return probabilities_NE, chosen_Nk, weights_Nk

    def _choose(self, probabilities_NE: Tensor) -> Tensor:
        bias_E = 0.0 if self.choice_bias is None else self.choice_bias.detach()
        return (probabilities_NE + bias_E).topk(self.config.active).indices

    def _aux(self, probabilities_NE: Tensor, chosen_Nk: Tensor) -> Aux:
        if self.config.balance == "none" or not len(chosen_Nk):
            return {}
        experts = len(self.experts)
        counts_E = count_choices(chosen_Nk.flatten(), experts)
        load_E = counts_E.to(probabilities_NE.dtype) / len(chosen_Nk)  # adds up to k
        if self.choice_bias is None:
            loss = experts * (load_E * probabilities_NE.mean(0)).sum()
            return {"expert_balance": self.config.balance_weight * loss}
        excess_E = (load_E - load_E.mean()).to(self.choice_bias.dtype)
        return {"expert_bias": ((self.choice_bias - self.choice_bias.detach()) * excess_E).sum()}


def expert_biases(model: nn.Module) -> list[tuple[nn.Parameter, float]]:
    """The choice biases of a model that are to be moved, each with the rate of its config."""
    found = {
        id(part.choice_bias): (part.choice_bias, part.config.bias_rate)
        for part in model.modules()
        if isinstance(part, MixtureOfExperts) and part.choice_bias is not None
    }
    return [(bias, rate) for bias, rate in found.values() if bias.requires_grad]


@torch.no_grad()
def update_expert_biases(model: nn.Module) -> None:
    """After a step: each expert's bias moves by the rate against the sign of its excess load (arXiv 2408.15664).

    The excess comes as the bias's gradient, from an extra loss whose value is zero: so it is summed over
    microbatches and ranks, and passes checkpoints and reversible blocks, like any gradient. No optimizer may own
    these biases.
    """
    for bias, rate in expert_biases(model):
        if bias.grad is not None:
            bias.sub_(bias.grad.sign(), alpha=rate)
            bias.grad = None


def mixture_plain(layer: MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    """The definition: every expert on every token, weighted by zero where it was not chosen."""
    x_ND = x_BTD.flatten(0, -2)
    _, chosen_Nk, weights_Nk = layer.route(x_ND)
    weights_NE = (F.one_hot(chosen_Nk, len(layer.experts)) * weights_Nk.unsqueeze(-1)).sum(1)
    y_ND = torch.zeros_like(x_ND)
    for index, expert in enumerate(layer.experts):
        y_ND = y_ND + weights_NE[:, index : index + 1].to(x_ND.dtype) * expert(x_ND)[0]
    if layer.shared is not None:
        y_ND = y_ND + layer.shared(x_ND)[0]
    return y_ND.view(x_BTD.shape)
