"""Replacing a linear by one of another kind: `from_linear(linear, config)` and `to_linear()`, in a validated order.

Each kind has a stage: dense 0, factorized 1, quantized 2, adapted 3. A linear may only be replaced by one
of a later stage: a quantized base under an adapter is QLoRA, while quantizing an adapter's linear would
bury the adapter. A kind joins with `@linear_kind(ItsConfig, stage)` on a module that has both methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError

DENSE, FACTORIZED, QUANTIZED, ADAPTED = range(4)
_STAGE_NAMES = ("dense", "factorized", "quantized", "adapted")


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


_KINDS: dict[type[Config], tuple[type[nn.Module], int]] = {}
M = TypeVar("M", bound=type[nn.Module])


def linear_kind(config: type[Config], stage: int) -> Callable[[M], M]:
    """Class decorator: `from_linear` builds this class for such a config."""

    def register(module: M) -> M:
        _KINDS[config] = (module, stage)
        return module

    return register


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
