"""The section quantization_config of config.json as the compressed-tensors library writes it. Torch-free.

Read strictly: what would change the weights and is not done here is refused by name. Which linears are quantized is not
asked of `targets` and `ignore`: their tensors tell (`models.packed_files`). Two formats of weights: `pack-quantized`,
codes in 32-bit words, and `int-quantized`, one byte a code, where activations are rounded as well, and of embedding and
head (`models.rounded_rows`).
Format: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from shoestring.core.errors import ModelFileError
from shoestring.nn.quantized.config import PackedConfig

SECTION, METHOD = "quantization_config", "compressed-tensors"
PACKED, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
ANY = object()
# Fields of each part with the values that are supported, null always among them; `ANY` changes no weight.
_SECTION: dict[str, tuple[Any, ...]] = {
    "quant_method": (METHOD,), "format": (PACKED, BYTES, MIXED), "config_groups": (ANY,), "ignore": (ANY,),
    "kv_cache_scheme": (), "quantization_status": ("compressed", "frozen"), "global_compression_ratio": (ANY,),
    "sparsity_config": ({},), "transform_config": ({},), "version": (ANY,), "run_compressed": (ANY,),
    "dequantize": (False,), "provider": (ANY,),
}  # fmt: skip
_GROUP: dict[str, tuple[Any, ...]] = {
    "targets": (ANY,), "weights": (ANY,), "input_activations": (ANY,), "output_activations": (),
    "format": (PACKED, BYTES),
}  # fmt: skip
_NUMBERS: dict[str, tuple[Any, ...]] = {
    "num_bits": (ANY,), "type": ("int",), "symmetric": (True, False), "group_size": (ANY,), "strategy": (ANY,),
    "block_structure": (), "dynamic": (False,), "actorder": (False, "weight", "static"), "observer": (ANY,),
    "observer_kwargs": (ANY,), "scale_dtype": (ANY,), "zp_dtype": (ANY,),
}  # fmt: skip
_INPUTS: dict[str, tuple[Any, ...]] = {
    **_NUMBERS, "num_bits": (8,), "symmetric": (True,), "group_size": (), "strategy": ("token",), "dynamic": (True,),
    "actorder": (False,),
}  # fmt: skip


_ENDS, _ROWS = ("embed_tokens", "lm_head"), PackedConfig(bits=8, group=None)
Others = Mapping[PackedConfig, Sequence[str]]  # linears by their names in the files that are kept in another way


def section_of(config: PackedConfig, others: Others | None = None, ends: Sequence[str] = ()) -> dict[str, Any]:
    """The section for a model all of whose linears but the head and `others` are kept so. ends: embedding and head by
    their names, where they are in 8 bits by rows."""
    groups = [_group_of(config, ["Linear"]), *(_group_of(each, names) for each, names in (others or {}).items())]
    if ends:
        groups.append(_group_of(_ROWS, ends, BYTES))
    forms = {group["format"] for group in groups}
    return {
        "quant_method": METHOD,
        "format": forms.pop() if len(forms) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [name for name in ("lm_head",) if name not in ends],
        "kv_cache_scheme": None,
    }


def _group_of(config: PackedConfig, targets: Sequence[str], form: str | None = None) -> dict[str, Any]:
    """targets: names of modules, which go before those of classes."""
    form = form or (PACKED if config.activations is None else BYTES)
    weights = {
        **_plain(config.bits, config.symmetric), "dynamic": False, "observer": "minmax",
        "group_size": config.group, "strategy": "channel" if config.group is None else "group",
    }  # fmt: skip
    inputs = None
    if config.activations is not None:
        inputs = {**_plain(8, True), "dynamic": True, "observer": None, "group_size": None, "strategy": "token"}
    return {
        "targets": list(targets), "weights": weights, "input_activations": inputs, "output_activations": None,
        "format": form,
    }  # fmt: skip


def _plain(bits: int, symmetric: bool) -> dict[str, Any]:
    return {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": None, "block_structure": None,
        "observer_kwargs": {},
    }  # fmt: skip


def schemes(section: dict[str, Any], where: str | None) -> tuple[PackedConfig, ...]:
    """The ways in which linears are kept, each once; the format of scales stands in the tensors alone, and so does who
    is kept in which. Raises ModelFileError."""
    check_fields(section, _SECTION, SECTION, where)
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        shown = f"{len(groups)} groups" if isinstance(groups, dict) else None
        raise refused("config_groups", groups, where, "one or more groups of linears that are kept alike", shown)
    for group in groups.values():
        if _of_ends(group) and _scheme(group, where) != _ROWS:
            raise refused("config_groups", groups, where, "embedding and head in 8 bits by rows", "of them otherwise")
    found = tuple(dict.fromkeys(_scheme(group, where) for group in groups.values() if not _of_ends(group)))
    if not found:
        raise refused("config_groups", groups, where, "a group of linears of the blocks", "of embedding and head alone")
    if len({config.activations for config in found}) > 1:
        raise refused("config_groups", groups, where, "inputs of 8 bits for all linears or none", "of both kinds")
    return found


def names_ends(section: dict[str, Any]) -> bool:
    """Whether embedding or head are in 8 bits by rows, of a section that `schemes` reads."""
    return any(_of_ends(group) for group in section["config_groups"].values())


def _of_ends(group: Any) -> bool:
    """Whether it is of embedding and head alone, by their names."""
    targets = group.get("targets") if isinstance(group, dict) else None
    return isinstance(targets, list) and bool(targets) and all(
        isinstance(name, str) and name.rpartition(".")[2] in _ENDS for name in targets
    )


def _scheme(group: Any, where: str | None) -> PackedConfig:
    check_fields(group, _GROUP, "config_groups", where)
    weights, inputs = group.get("weights"), group.get("input_activations")
    check_fields(weights, _NUMBERS, "weights", where)
    if inputs is not None:
        check_fields(inputs, _INPUTS, "input_activations", where)
        for name in ("num_bits", "dynamic", "strategy"):  # left out, they mean other things
            if inputs.get(name) is None:
                raise refused(name, None, where, repr(_INPUTS[name][0]))
    bits = weights.get("num_bits")
    if type(bits) is not int or not 2 <= bits <= 8:
        raise refused("num_bits", bits, where, "from 2 to 8")
    symmetric = weights.get("symmetric")
    activations: Literal["int8"] | None = None if inputs is None else "int8"
    size = _group_size(weights, where)
    return PackedConfig(
        bits=bits, group=size, symmetric=True if symmetric is None else symmetric, activations=activations
    )  # fmt: skip


def _group_size(weights: dict[str, Any], where: str | None) -> int | None:
    """Inputs that share a scale; None for a whole row."""
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if size is not None and (type(size) is not int or not (size == -1 or 0 < size < 2**31)):
        raise refused("group_size", size, where, "a positive whole number, or -1")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy == "channel":
        return None
    if strategy != "group" or size is None or size < 1:
        raise refused("strategy", strategy, where, 'group with a group_size, or "channel"')
    return size


def check_fields(part: Any, known: dict[str, tuple[Any, ...]], name: str, where: str | None) -> None:
    """Raises ModelFileError for a field that is unknown, or has a value that is not supported."""
    if not isinstance(part, dict):
        raise refused(name, part, where, "an object")
    for key, value in part.items():
        allowed = known.get(key, ())
        if value is None or any(one is ANY for one in allowed):
            continue
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise refused(key, value, where, " or ".join(repr(one) for one in allowed) or "null")


def refused(
    name: str, value: Any, where: str | None, supported: str, shown: str | None = None
) -> ModelFileError:
    """For a field whose value is not supported."""
    shown = shown or repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ModelFileError(
        f"the weights are quantized in a way that cannot be read: {SECTION}: {name} is {shown}", where,
        f"supported: {supported}; or use the model's unquantized weights",
    )  # fmt: skip
