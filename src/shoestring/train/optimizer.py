"""What moves the weights: which parameters go to which optimizer, and which of them decay.

Matrices decay, norms and biases do not (arXiv 1711.05101). The groups partition all trainable parameters by identity, a
tied head counted once; anything else is a bug and asserted. The choice biases of a mixture of experts are in none: they
move by a rule of their own after each step. All state is made here, not in the first step, where a lack of memory would
leave some weights updated and others not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from shoestring.core.errors import ConfigError
from shoestring.nn.moe import expert_biases, update_expert_biases
from shoestring.train.adamw import AdamW, EagerOptimizer
from shoestring.train.muon import Muon
from shoestring.train.optimizer_config import AdamWConfig, BesideMuonConfig, MuonConfig, OptimizerConfig

Group = dict[str, Any]


class Chained(EagerOptimizer):
    """Several optimizers as one: their groups, their state, one step."""

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self._parts:
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


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Over the model's trainable parameters, at the config's learning rate, its state in memory from now on."""
    decayed, undecayed = parameter_groups(model)
    optimizer: torch.optim.Optimizer
    if isinstance(config, MuonConfig):
        optimizer = _muon(config, model, decayed, undecayed)
    else:
        optimizer = _adamw(config, [
            {"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0},
        ])  # fmt: skip
    if expert_biases(model):
        optimizer.register_step_post_hook(lambda *_: update_expert_biases(model))
    return optimizer


def _adamw(config: AdamWConfig | BesideMuonConfig, groups: list[Group]) -> torch.optim.Optimizer:
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, config.learning_rate, config.betas, config.epsilon)


def _muon(
    config: MuonConfig, model: nn.Module, decayed: list[nn.Parameter], undecayed: list[nn.Parameter]
) -> torch.optim.Optimizer:
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
    if any(group["params"] for group in groups):
        parts.append(_adamw(beside, groups))
    return Chained(*parts)
