"""What moves the weights: which parameters go to which optimizer, and which of them decay.

Matrices decay, norms and biases do not (arXiv 1711.05101). The groups partition all trainable parameters by identity, a
tied head counted once; anything else is a bug and asserted. The choice biases of a mixture of experts are in none: they
move by a rule of their own after each step. All state is made here, not in the first step, where a lack of memory would
leave some weights updated and others not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shoestring.core.errors import ConfigError
from shoestring.core.extras import need
from shoestring.nn.moe import expert_biases, update_expert_biases
from shoestring.plan.moments import in_eight_bits
from shoestring.train.adamw import AdamW, EagerOptimizer
from shoestring.train.adamw8bit import AdamW8bit
from shoestring.train.muon import Muon
from shoestring.train.mup import scaled_groups
from shoestring.train.optimizer_config import (
    AdafactorConfig,
    AdamWConfig,
    BesideMuonConfig,
    LionConfig,
    MuonConfig,
    OptimizerConfig,
)

Group = dict[str, Any]


class Chained(EagerOptimizer):
    """Several optimizers as one: their groups, their state, one step."""

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()


def parameter_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, undecayed): parameters of two or more dimensions, and the others.

    Frozen ones in neither.
    """
    moved_otherwise = {id(bias) for bias, _ in expert_biases(model)}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in moved_otherwise]
    decayed = [parameter for parameter in trainable if parameter.ndim >= 2]
    undecayed = [parameter for parameter in trainable if parameter.ndim < 2]
    ids = [id(parameter) for parameter in decayed + undecayed]
    every = {id(p) for _, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    every -= moved_otherwise
    assert len(set(ids)) == len(ids) and set(ids) == every, (
        "the groups must partition the trainable parameters"
    )
    return decayed, undecayed


def block_matrices(model: nn.Module) -> set[int]:
    """Ids of the parameters in `model.blocks` that are matrices of linear maps, or stacks of such: what Muon moves."""
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        return set()
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    return {id(p) for p in blocks.parameters() if p.ndim in (2, 3)} - tables


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Chained:
    """Over the model's trainable parameters, at the config's learning rate, its state in memory from now on.

    Raises ConfigError for a package that is not installed, and for what this model has no use for.
    """
    decayed, undecayed = parameter_groups(model)
    groups: list[Group] = [
        {"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0},
    ]  # fmt: skip
    if isinstance(config, AdamWConfig) and config.scaling == "mup":
        groups = scaled_groups(config, model, decayed, undecayed, block_matrices(model))
    if isinstance(config, MuonConfig):
        parts = _muon(config, model, decayed, undecayed)
    elif isinstance(config, AdafactorConfig):
        parts = [_adafactor(config, groups)]
    elif isinstance(config, LionConfig):
        parts = [_lion(config, groups)]
    elif config.state == "8bit":
        parts = _adamw_8bit(config, groups)
    else:
        parts = [_adamw(config, groups)]
    optimizer = Chained(*parts)
    if expert_biases(model):
        optimizer.register_step_post_hook(lambda *_: update_expert_biases(model))
    return optimizer


def _adamw(config: AdamWConfig | BesideMuonConfig, groups: list[Group]) -> torch.optim.Optimizer:
    return AdamW(
        _filled(groups), lr=config.learning_rate, betas=config.betas, eps=config.epsilon, weight_decay=0.0
    )


def _adamw_8bit(config: AdamWConfig, groups: list[Group]) -> list[torch.optim.Optimizer]:
    """Those that are large enough in 8 bits, the others as they are."""

    def those(wanted: bool) -> list[Group]:
        chosen = [[p for p in group["params"] if in_eight_bits(p.numel()) == wanted] for group in groups]
        return [{**group, "params": some} for group, some in zip(groups, chosen, strict=True) if some]

    parts: list[torch.optim.Optimizer] = []
    if large := those(True):
        parts.append(AdamW8bit(large, config.learning_rate, config.betas, config.epsilon))
    if small := those(False):
        parts.append(_adamw(config, small))
    return parts


class _EagerAdafactor(EagerOptimizer, torch.optim.Adafactor): ...


def _adafactor(config: AdafactorConfig, groups: list[Group]) -> torch.optim.Optimizer:
    """A group for each parameter: torch keeps what it computes for one of a group until it has that of the next."""
    optimizer = _EagerAdafactor(
        [{**group, "params": [parameter]} for group in groups for parameter in group["params"]],
        lr=config.learning_rate,
        beta2_decay=config.beta2_decay,
        eps=(config.epsilon, config.least_scale),
        d=config.clip_update,
        foreach=False,
    )
    for parameter in _of(groups):
        state: dict[str, Tensor] = {"step": torch.zeros((), dtype=torch.float32)}
        if parameter.ndim > 1:
            state["row_var"] = parameter.new_zeros((*parameter.shape[:-1], 1))
            state["col_var"] = parameter.new_zeros((*parameter.shape[:-2], 1, parameter.shape[-1]))
        else:
            state["variance"] = torch.zeros_like(parameter)
        optimizer.state[parameter] = state
    return optimizer


def _lion(config: LionConfig, groups: list[Group]) -> torch.optim.Optimizer:
    need("lion_pytorch", "optimizer.kind lion", "train")
    from lion_pytorch import Lion

    eager: Any = type("EagerLion", (EagerOptimizer, Lion), {})
    optimizer = eager(_filled(groups), lr=config.learning_rate, betas=config.betas)
    for parameter in _of(groups):
        optimizer.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
    return optimizer


def _muon(
    config: MuonConfig, model: nn.Module, decayed: list[nn.Parameter], undecayed: list[nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Matrices in blocks to Muon; embedding and head to AdamW at rates of their own, and the others."""
    beside, matrices = config.adamw, block_matrices(model)
    moved = [parameter for parameter in decayed if id(parameter) in matrices]
    embedding, head = (getattr(getattr(model, name, None), "weight", None) for name in ("embedding", "head"))
    if beside.head_learning_rate is not None and head is embedding:
        raise ConfigError(
            "optimizer.adamw.head_learning_rate: this model's head is its embedding",
            hint="use optimizer.adamw.embedding_learning_rate, or give it a head of its own (model.tied_head false)",
        )
    groups: list[Group] = [{"params": undecayed, "weight_decay": 0.0}]
    rates = {id(embedding): beside.embedding_learning_rate}
    rates.setdefault(id(head), beside.head_learning_rate)
    alike: dict[float, list[nn.Parameter]] = {}
    for parameter in decayed:
        if id(parameter) not in matrices:
            rate = rates.get(id(parameter))
            alike.setdefault(beside.learning_rate if rate is None else rate, []).append(parameter)
    for rate, parameters in alike.items():
        groups.append({"params": parameters, "weight_decay": beside.weight_decay, "lr": rate})
    parts: list[torch.optim.Optimizer] = []
    if moved:
        parts.append(Muon(
            moved, config.learning_rate, config.momentum, config.nesterov, config.weight_decay, config.cautious,
            config.scaling, config.iterations, config.coefficients,
        ))  # fmt: skip
    if _filled(groups):
        parts.append(_adamw(beside, groups))
    return parts


def _filled(groups: list[Group]) -> list[Group]:
    return [group for group in groups if group["params"]]


def _of(groups: list[Group]) -> list[nn.Parameter]:
    return [parameter for group in groups for parameter in group["params"]]
