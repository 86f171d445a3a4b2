"""One block at a time: read, quantized by what reaches its linears, and left, with text on its way through all of them.

A linear's calibration inputs are those that the model makes whose linears before it, in the same block too, are
quantized already: query, key and value first, then output, then gate and up, then down. Between them a block runs no
further than to the linear that is asked for, so in all it computes little more than two passes. Where GPTQ rounds, the
dense block runs beside it, and the weights first make up for what the text has become (`follow`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.passage import Passage, inputs_of, pass_through
from shoestring.compression.quantize.config import LINEARS, STAGES, QuantizeConfig
from shoestring.compression.quantize.follow import follow
from shoestring.compression.quantize.gptq import Hessian, Rounded, by_importance, gptq, row_errors, to_nearest
from shoestring.compression.quantize.learned import learn, put
from shoestring.compression.quantize.scaling import Kept, scale_inputs
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.models.builder import build_block
from shoestring.models.config import ModelConfig
from shoestring.models.families.common import dense_parts
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.grid import fit
from shoestring.nn.quantized.packed import PackedLinear, check_groups, round_rows


def check_model(config: ModelConfig, packed: PackedConfig, where: str) -> None:
    """Raises ModelFileError for kinds that are not quantized here, ConfigError for groups that do not fit."""
    if dense_parts(config) is None:
        raise ModelFileError(
            "only models with grouped-query attention, SwiGLU and rotary positions in every layer can be quantized",
            where, "Llama, Qwen2 and Qwen3 are such models",
        )  # fmt: skip
    with torch.device("meta"):
        block = build_block(config)
    for name in LINEARS:
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        try:
            check_groups(linear.in_features, packed)
        except ConfigError as error:
            raise ConfigError(f"{error.message} ({name})", hint=error.hint) from error


def round_small(block: nn.Module, kept: Kept) -> None:
    """What of a dense block is not quantized, norms and biases, becomes what will be kept of it, in place."""
    for name, parameter in block.named_parameters():
        if name.removesuffix(".weight") not in LINEARS:
            parameter.copy_(kept(name, parameter))


def quantize_block(
    block: nn.Module,
    passages: Sequence[Passage],
    config: PackedConfig,
    settings: QuantizeConfig,
    kept: Kept,
    done: Callable[[], Any],
    own: Sequence[Passage] = (),
) -> dict[str, Rounded]:
    """Replace the block's linears by packed ones, in place; -> what each became. config: of those that are not in
    `settings.wide`; kept: what norms and biases are kept as. done: called after each linear. own: for methods that
    follow the dense model (`QuantizeConfig.follows`), the text as that model has it, which is brought behind the
    block."""
    method, found = settings.method, {}
    whole: dict[str, Tensor] = {}
    configs = settings.each(config)
    dense = copy.deepcopy(block) if settings.follows else None
    round_small(block, kept)
    for number, stage in enumerate(STAGES):
        hessian = None
        if dense is not None:
            hessian = follow(block, dense, stage, passages, own, config)
        elif method != "rtn":
            hessian = second_moments(block, stage[0], passages, config)
        if method == "awq" and number % 2 == 0:
            assert hessian is not None
            _divide(hessian, scale_inputs(block, stage, hessian.sum_II, config, kept))
            later = STAGES[number + 1]  # while the linear before it is dense
            scale_inputs(block, later, second_moments(block, later[0], passages, config).sum_II, config, kept)
        for name in stage:
            linear: Any = block.get_submodule(name)
            if method == "learned":
                whole[name] = linear.weight
            found[name] = _rounded(linear.weight, hessian, configs[name], settings)
            packed = PackedLinear.of(found[name].codes_OI, found[name].grid, configs[name], linear.bias)
            put(block, name, packed.eval())
            del linear  # else it stays until the next is looked at
            if method != "learned":
                done()
    if dense is not None:
        pass_through(dense, own)
        del dense
    if method == "learned":
        del hessian
        for passage, there in zip(passages, own, strict=True):
            passage.target = there.kept
        found = learn(block, found, passages, config, settings.steps, settings.seed)
        found = _measured(block, found, whole, passages, config, done)
    return found


def _rounded(
    weight_OI: Tensor, hessian: Hessian | None, config: PackedConfig, settings: QuantizeConfig
) -> Rounded:
    if hessian is None:
        return to_nearest(weight_OI, config)
    if settings.method == "awq":
        return by_importance(weight_OI, hessian.sum_II, config)
    return gptq(weight_OI, hessian.sum_II, config, settings.damping, targets=settings.method == "learned")


def _measured(
    block: nn.Module,
    found: dict[str, Rounded],
    whole: dict[str, Tensor],
    passages: Sequence[Passage],
    config: PackedConfig,
    done: Callable[[], Any],
) -> dict[str, Rounded]:
    """The same, with the errors that the block now makes."""
    after = {}
    for stage in STAGES:
        sum_II = second_moments(block, stage[0], passages, config).sum_II
        for name in stage:
            weight, rounded = whole[name].to(sum_II.dtype), found[name]
            nearest = fit(whole[name], config)
            errors = [
                float(row_errors(values - weight, sum_II).sum())
                for values in (
                    rounded.grid.values(rounded.codes_OI, sum_II.dtype),
                    nearest.values(nearest.codes(whole[name]), sum_II.dtype),
                )
            ]
            after[name] = replace(
                rounded, error=errors[0], nearest=errors[1], whole=float(row_errors(weight, sum_II).sum())
            )
            done()
    return after


def second_moments(block: nn.Module, linear: str, passages: Sequence[Passage], config: PackedConfig) -> Hessian:
    """Of what reaches a linear of the block."""
    hessian = Hessian(block.get_submodule(linear).in_features)  # type: ignore[arg-type]
    for x_NI in inputs_of(block, linear, passages):
        hessian.add(x_NI if config.activations is None else round_rows(x_NI))
    return hessian


def _divide(hessian: Hessian, scale_I: Tensor) -> None:
    """Of inputs that have been divided by these."""
    scale_I = scale_I.to(hessian.sum_II.dtype)
    hessian.sum_II.div_(scale_I).div_(scale_I.unsqueeze(1))
