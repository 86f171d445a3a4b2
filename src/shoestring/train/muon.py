"""Muon (Keller Jordan, kellerjordan.github.io/posts/muon; scaling after arXiv 2502.16982): matrices move by the nearest
orthogonal matrix of their momentum.

For the matrices of linear maps alone, W [out, in] or stacked [E, in, out]: embeddings, heads and vectors want AdamW.
What is nearest is found by Newton-Schulz steps, products of matrices and nothing else. Matrices of one shape go through
them together, as [n, r, c] with r <= c, in portions that bound what a step takes beside the moments (`plan.moments`).
torch.optim.Muon goes matrix by matrix and always in bfloat16, which CPUs without units for it compute slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shoestring.plan.moments import GRAM, portions
from shoestring.train.adamw import KindByKind

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    matrices_nRC: Tensor, iterations: int = 5, coefficients: Sequence[float] = COEFFICIENTS, gram: bool | None = None
) -> Tensor:
    """Each of n matrices U·S·Vᵀ [R, C], R <= C, of Frobenius norm 1 at most -> about U·Vᵀ.

    Each iteration maps every singular value s to a·s + b·s³ + c·s⁵. These coefficients are steep at 0 and do not
    converge: after five, values between 0.01 and 1 lie in about [0.68, 1.13]. gram: iterate on X·Xᵀ [R, R] instead of
    X, which takes fewer products where C is large (by default where it does, in float32 or finer).
    """
    a, b, c = coefficients
    x = matrices_nRC
    if gram is None:
        gram = x.shape[-1] > GRAM * x.shape[-2] and x.dtype in (torch.float32, torch.float64)
    if gram and iterations:
        return torch.bmm(_power(x, iterations, a, b, c), x)
    for _ in range(iterations):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x


def _power(x_nRC: Tensor, iterations: int, a: float, b: float, c: float) -> Tensor:
    """P with P·X what the iterations make of X: one is X <- Q·X, so X·Xᵀ <- Q·X·Xᵀ·Q, with Q from X·Xᵀ alone."""
    square_nRR, power = torch.bmm(x_nRC, x_nRC.mT), None
    for left in range(iterations - 1, -1, -1):
        step = torch.baddbmm(square_nRR, square_nRR, square_nRR, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        power = step if power is None else torch.bmm(step, power)
        if left:
            square_nRR = torch.bmm(torch.bmm(step, square_nRR), step)
    assert power is not None
    return power


def scale_of(scaling: str, rows: int, columns: int) -> float:
    """How long the step of a matrix [outputs, inputs] is.

    spectral: as its outputs are wider than its inputs, so that outputs move alike in every shape. rms: the root mean
    square of its numbers is that of AdamW's usual step, 0.2 (arXiv 2502.16982, section 2.2).
    """
    if scaling == "spectral":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(KindByKind):
    """Parameters [out, in] and stacks [E, in, out] of them, with decoupled weight decay.

    cautious: only numbers that the step draws towards zero anyway decay. Momentum is in memory from the start.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        cautious: bool = False,
        scaling: str = "spectral",
        iterations: int = 5,
        coefficients: Sequence[float] = COEFFICIENTS,
    ):
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "cautious": cautious,
            "scaling": scaling, "iterations": iterations, "coefficients": tuple(coefficients),
        })  # fmt: skip
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon moves matrices, and not a parameter of shape {list(parameter.shape)}")
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _kind(self, parameter: Tensor) -> tuple[Any, ...]:
        return *parameter.shape[-2:], parameter.ndim, parameter.dtype, parameter.device

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Parameters of one shape, but for how many matrices each holds."""
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        rows, columns = parameters[0].shape[-2:]
        weights, gradients, momenta = (
            [matrix for tensor in tensors for matrix in tensor.view(-1, rows, columns).unbind()]
            for tensors in (parameters, gradients, momenta)
        )
        outputs = (rows, columns) if parameters[0].ndim == 2 else (columns, rows)
        length = scale_of(group["scaling"], *outputs)
        for start, end in portions(len(weights), rows, columns):
            steps = _orthogonal(group, gradients[start:end], momenta[start:end])
            for weight, step in zip(weights[start:end], steps, strict=True):
                _apply(group, weight, step, length)
            del steps, step  # before the next portion's are made


def _orthogonal(group: dict[str, Any], gradients: list[Tensor], momenta: list[Tensor]) -> Sequence[Tensor]:
    """The steps of matrices of one shape, before their length: views of one tensor."""
    rows, columns = gradients[0].shape
    tall, dtype = rows > columns, torch.promote_types(gradients[0].dtype, torch.float32)
    shape = (len(gradients), *sorted((rows, columns)))
    x_nRC = torch.empty(shape, dtype=torch.bfloat16 if gradients[0].is_cuda else dtype, device=gradients[0].device)
    for one, gradient, momentum in zip(x_nRC, gradients, momenta, strict=True):
        towards = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        one.copy_(towards.mT if tall else towards)
        del towards
    norms_n11 = torch.linalg.vector_norm(x_nRC, dim=(-2, -1), keepdim=True, dtype=dtype)
    x_nRC.div_(norms_n11.clamp_(min=1e-7))
    x_nRC = newton_schulz(x_nRC, group["iterations"], group["coefficients"])
    return (x_nRC.mT if tall else x_nRC).unbind()


def _apply(group: dict[str, Any], weight: Tensor, step: Tensor, length: float) -> None:
    decay = group["lr"] * group["weight_decay"]
    if decay and group["cautious"]:
        weight.sub_(weight * (step * weight > 0), alpha=decay)
    elif decay:
        weight.mul_(1 - decay)
    weight.sub_(step, alpha=group["lr"] * length)
