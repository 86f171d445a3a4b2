"""AdamW (arXiv 1711.05101) in two groups: matrices decay, norms and biases do not.

The fused kernel updates weights and both moments in one pass over memory. The groups partition all
trainable parameters by identity, a tied head counted once; anything else is a bug and asserted. The choice
biases of a mixture of experts are in neither: they move by a rule of their own after each step.
"""

from __future__ import annotations

import torch
from torch import nn

from shoestring.nn.moe import expert_biases, update_expert_biases
from shoestring.train.optimizer_config import OptimizerConfig


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


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the model's trainable parameters, at the config's learning rate, its moments in memory from now on.

    torch would make them in the first step, where a lack of memory would leave some weights updated and others not.
    """
    decayed, undecayed = parameter_groups(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )
    for parameter in [*decayed, *undecayed]:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    if expert_biases(model):
        optimizer.register_step_post_hook(lambda *_: update_expert_biases(model))
    return optimizer
