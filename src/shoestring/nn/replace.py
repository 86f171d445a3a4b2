"""Replacing a linear by one of another kind: `from_linear(linear, config)` and `to_linear()`, in a validated order.

Each kind has a stage: dense 0, factorized 1, quantized 2, adapted 3, fake-quantized 4. A linear may only be replaced by
one of a later stage: a quantized base under an adapter is QLoRA, while quantizing an adapter's linear would bury the
adapter; fake quantization rounds an adapter with its base, so it comes last. A new kind has both methods, and a line in
`_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import nn

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError
from shoestring.nn.config import LowRankConfig
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.nn.quantized.config import FakeQuantizedConfig, Int4Config, Int8Config, NF4Config, PackedConfig
from shoestring.nn.quantized.fake import FakeQuantized
from shoestring.nn.quantized.four_bit import Int4Linear, NF4Linear
from shoestring.nn.quantized.int8 import Int8Linear
from shoestring.nn.quantized.packed import PackedLinear

DENSE, FACTORIZED, QUANTIZED, ADAPTED, FAKE_QUANTIZED = range(5)
_STAGE_NAMES = ("dense", "factorized", "quantized", "adapted", "fake-quantized")


@runtime_checkable
class LinearKind(Protocol):
    """x: [..., in_features] -> [..., out_features]."""

    in_features: int
    out_features: int

    @classmethod
    def from_linear(cls, linear: Any, config: Any, **data: Any) -> nn.Module: ...

    def to_linear(self) -> nn.Linear:
        """A dense linear that computes the same; one stage of the way back at least."""
        ...


# For each config the class that `from_linear` builds, and its stage.
_KINDS: dict[type[Config], tuple[type[nn.Module], int]] = {
    LowRankConfig: (LowRankLinear, FACTORIZED),
    Int8Config: (Int8Linear, QUANTIZED),
    Int4Config: (Int4Linear, QUANTIZED),
    NF4Config: (NF4Linear, QUANTIZED),
    PackedConfig: (PackedLinear, QUANTIZED),
    LoRAConfig: (LoRALinear, ADAPTED),
    FakeQuantizedConfig: (FakeQuantized, FAKE_QUANTIZED),
}


def stage_of(linear: nn.Module) -> int:
    """How far a linear has come from being one dense matrix."""
    return max((stage for kind, stage in _KINDS.values() if isinstance(linear, kind)), default=DENSE)


def from_linear(linear: nn.Module, config: Config, **data: Any) -> nn.Module:
    """The replacement of `linear` that `config` describes, computing the same or nearly so.

    data: what the kind can use besides, such as `second_moment` of the inputs. Raises ConfigError for an
    order that makes no sense, as quantizing what is adapted.
    """
    module, stage = _KINDS[type(config)]
    before = stage_of(linear)
    if stage <= before:
        raise ConfigError(
            f"a linear that is {_STAGE_NAMES[before]} cannot become {_STAGE_NAMES[stage]}",
            hint=f"the order is {', then '.join(_STAGE_NAMES[1:])}; to_linear() leads back",
        )
    return module.from_linear(linear, config, **data)  # type: ignore[attr-defined]


def replace_linears(
    root: nn.Module, config: Config, chosen: Callable[[str, nn.Module], bool], **data: Any
) -> list[str]:
    """Replace in place each linear below `root` for which chosen(dotted name, linear); -> their names."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *(kind for kind, _ in _KINDS.values()))
    found = []
    for name, module in root.named_modules():
        if isinstance(module, kinds) and chosen(name, module):
            found.append(name)
    for name in found:
        parent, _, last = name.rpartition(".")
        owner = root.get_submodule(parent)
        setattr(owner, last, from_linear(owner.get_submodule(last), config, **data))
    return found
