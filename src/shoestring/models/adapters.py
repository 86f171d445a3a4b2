"""Adapters on a whole decoder: attach, switch, set aside, merge; a quantized base under them (QLoRA, arXiv 2305.14314).

Attaching freezes every other parameter. By default all linears of the blocks are adapted: query, key, value,
output, gate, up, down.
Modules may be named as here (`attention.query`, `query`) or as Hugging Face does (`q_proj`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from shoestring.core.config import Config
from shoestring.core.errors import ConfigError
from shoestring.core.seeds import generator
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import family_of
from shoestring.models.rounded_rows import RoundedRows
from shoestring.nn.lora import LoRA, LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.replace import from_linear, replace_linears

DEFAULT = "default"


def attach(
    decoder: Decoder,
    config: LoRAConfig,
    seed: int = 0,
    modules: Sequence[str] | None = None,
    name: str = DEFAULT,
) -> list[str]:
    """Give linears of the blocks a fresh adapter, made active, and freeze everything else; -> their names.

    modules: the last words of the linears' names; None is all. A second call with another name adds a second
    adapter. Raises ConfigError for a name that no linear has, and for an adapter name that is taken or has a dot.
    """
    if not name or "." in name or name in adapter_names(decoder):
        raise ConfigError(f"{name!r} cannot name a new adapter: it is taken, empty or has a dot")
    chosen = _choose(decoder, modules)
    decoder.requires_grad_(False)
    for linear in chosen:
        attach_to(decoder, linear, config, name, generator(seed, "adapter", name, linear))
    switch(decoder, name)
    return chosen


def attach_to(
    decoder: Decoder, linear: str, config: LoRAConfig, name: str, random: torch.Generator | None = None
) -> LoRA:
    """One fresh adapter on the linear of this dotted name, `blocks.INDEX. ...`."""
    # DoRA begins from the lengths of the weight's rows.
    with decoder.present(int(linear.split(".")[1])) if config.dora else contextlib.nullcontext():
        return _attach(decoder, linear, config, name, random)


def _attach(decoder: Decoder, linear: str, config: LoRAConfig, name: str, random: torch.Generator | None) -> LoRA:
    module = decoder.get_submodule(linear)
    if isinstance(module, LoRALinear):
        return module.add(name, config, random)
    replacement = from_linear(module, config, name=name, random=random)
    parent, _, last = linear.rpartition(".")
    setattr(decoder.get_submodule(parent), last, replacement)
    adapter = replacement.adapters[name]  # type: ignore[index]
    assert isinstance(adapter, LoRA)
    return adapter


def adapted_linears(decoder: nn.Module) -> dict[str, LoRALinear]:
    """The linears that carry adapters, by dotted name."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, LoRALinear)}


def adapter_names(decoder: nn.Module) -> list[str]:
    """In the order in which they were attached."""
    return list(dict.fromkeys(name for linear in adapted_linears(decoder).values() for name in linear.adapters))


def active_adapter(decoder: nn.Module) -> str | None:
    """The adapter at work, None where there is none."""
    return next((linear.active for linear in adapted_linears(decoder).values() if linear.active), None)


def switch(decoder: nn.Module, name: str | None) -> None:
    """Make one adapter work and train, the others rest; None: the base alone. Raises ConfigError."""
    known = adapter_names(decoder)
    if name is not None and name not in known:
        raise ConfigError(f"there is no adapter {name!r}", hint=f"there are: {', '.join(known) or 'none'}")
    for linear in adapted_linears(decoder).values():
        linear.active = name if name is not None and name in linear.adapters else None
        for other, adapter in linear.adapters.items():
            adapter.requires_grad_(other == name)


def detach(decoder: nn.Module, name: str) -> None:
    """Take an adapter off, also one that is only in some linears; a linear without any is what it was before."""
    for path, linear in adapted_linears(decoder).items():
        if name in linear.adapters:
            del linear.adapters[name]
            linear.active = None if linear.active == name else linear.active
        if not linear.adapters:
            parent, _, last = path.rpartition(".")
            setattr(decoder.get_submodule(parent), last, linear.base)


@contextlib.contextmanager
def without_adapters(decoder: nn.Module) -> Iterator[None]:
    """Inside, the base model works alone."""
    linears = adapted_linears(decoder)
    before = {name: linear.active for name, linear in linears.items()}
    for linear in linears.values():
        linear.active = None
    try:
        yield
    finally:
        for name, linear in linears.items():
            linear.active = before[name]


def merge(decoder: Decoder) -> Decoder:
    """Fold the active adapters into dense linears, in place, a quantized base too; other adapters are dropped."""
    for name, linear in adapted_linears(decoder).items():
        parent, _, last = name.rpartition(".")
        setattr(decoder.get_submodule(parent), last, linear.to_linear().train(linear.training))
    return decoder.requires_grad_(True)


def quantize_blocks(decoder: Decoder, config: Config) -> list[str]:
    """Replace every linear of the blocks by its quantized form, one after another; -> their names."""
    return replace_linears(decoder, config, lambda name, _: name.startswith("blocks."))


def halve_bases(decoder: Decoder) -> None:
    """Keep the dense weights under adapters in bfloat16, for products in bfloat16: cast once instead of every time."""
    for linear in adapted_linears(decoder).values():
        _halve(linear.base)


class HalvedBases:
    """`halve_bases` while a model is read (`models.folder.AsRead`), so that its weights are never all in float32.
    modules: as for `attach`, which comes after. Raises ConfigError for a name that no linear has."""

    def __init__(self, config: ModelConfig, modules: Sequence[str] | None = None):
        self._names = _choose(build(config, device="meta"), modules)
        self._blocks = 0  # read so far

    def ends(self, decoder: Decoder, rounded: Mapping[str, RoundedRows]) -> None:
        """They stay as they are."""

    def block(self, block: nn.Module) -> None:
        prefix = f"blocks.{self._blocks}."
        for name in self._names:
            if name.startswith(prefix):
                _halve(block.get_submodule(name.removeprefix(prefix)))
        self._blocks += 1


def _halve(linear: nn.Module) -> None:
    if isinstance(linear, nn.Linear):
        linear.weight.data = linear.weight.data.bfloat16()


def _choose(decoder: Decoder, modules: Sequence[str] | None) -> list[str]:
    """Dotted names of the linears to adapt."""
    linears = [
        name
        for name, module in decoder.named_modules()
        if name.startswith("blocks.") and hasattr(module, "in_features") and ".base" not in name
    ]
    inner = [name for name in linears if any(other != name and name.startswith(other + ".") for other in linears)]
    linears = [name for name in linears if name not in inner]
    if modules is None:
        return linears
    family = family_of(decoder.config)
    known: dict[str, list[str]] = {}
    for linear in linears:
        theirs = family.tensor_name(f"{linear}.weight").removesuffix(".weight")
        for dotted in (linear, theirs):
            parts = dotted.split(".")
            for start in range(len(parts)):
                known.setdefault(".".join(parts[start:]), []).append(linear)
    if unknown := [name for name in modules if name not in known]:
        short = sorted({name.rpartition(".")[2] for name in linears})
        raise ConfigError(f"no linear is called {unknown[0]!r}", hint=f"there are: {', '.join(short)}")
    wanted = {linear for name in modules for linear in known[name]}
    return [linear for linear in linears if linear in wanted]
