"""adapter_config.json of a PEFT folder, as peft reads and writes it: fields that are computed with, fields that change
nothing, and all others, which are refused by name."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shoestring.core.config_errors import expected_of
from shoestring.core.errors import ModelFileError
from shoestring.models.families.registry import read_json
from shoestring.models.module_patterns import ModulePatterns
from shoestring.models.wheels import KNOWN
from shoestring.nn.lora import LoRA
from shoestring.nn.lora_config import LoRAConfig

CONFIG = "adapter_config.json"

# Fields that change what an adapter computes, and the values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
# Fields that say how an adapter came to be, where it is used, or what its tensors say by themselves.
_HARMLESS = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
    "unsloth_fixed", "unsloth_version",
})  # fmt: skip
_READ = frozenset({
    "alpha_pattern", "init_lora_weights", "lora_alpha", "lora_dropout", "r", "rank_pattern", "use_dora", "use_rslora",
})  # fmt: skip
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga", re.IGNORECASE)
_THEIR_NAMES = {
    "rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rank_stabilized": "use_rslora", "dora": "use_dora",
}  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """What adapter_config.json says. base: a path or a name on the hub; revision: of that.

    The patterns are peft's: regular expressions for the ends of module names, with the rank or alpha of those modules.
    """

    base: str | None
    lora: LoRAConfig
    rank_pattern: ModulePatterns[int]
    alpha_pattern: ModulePatterns[float]
    revision: str | None = None

    def of(self, module: str) -> LoRAConfig:
        """The config of one module, by Hugging Face's name. Raises ValueError where matching takes too long."""
        changed = {"rank": self.rank_pattern.of(module), "alpha": self.alpha_pattern.of(module)}
        return self.lora.model_copy(update={key: value for key, value in changed.items() if value is not None})


def read_adapter_config(folder: str | Path) -> AdapterConfig:
    """Raises ModelFileError with the field that is wrong or not supported."""
    file = Path(folder) / CONFIG
    values = read_json(file)
    for key, neutral in _NEUTRAL.items():
        if key in values and values[key] not in neutral:
            message = f"{key} is {values[key]!r}, which is not supported"
            raise ModelFileError(message, str(file), f"only {neutral[0]!r} is")
    for key, value in values.items():
        if key not in (_NEUTRAL.keys() | _HARMLESS | _READ) and value not in (None, False, [], {}):
            message = f"unknown field {key} ({value!r:.60}), which may change what the adapter computes"
            raise ModelFileError(message, str(file), f"if it does not, remove it from {CONFIG}")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
        raise ModelFileError(
            f"init_lora_weights is {start!r}, which changes the base model's weights", str(file),
            "have peft convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )  # fmt: skip
    try:
        lora = LoRAConfig(
            rank=values.get("r", 8),
            alpha=float(values.get("lora_alpha", 8)),
            dropout=float(values.get("lora_dropout", 0.0)),
            rank_stabilized=values.get("use_rslora", False),
            dora=values.get("use_dora", False),
        )
        tables = [_table(values.get(f"{name}_pattern")) for name in ("rank", "alpha")]
        for value in tables[0].values():
            LoRAConfig(rank=value)
        for value in tables[1].values():
            LoRAConfig(alpha=float(value))
        ranks, alphas = ModulePatterns(tables[0]), ModulePatterns({key: float(of) for key, of in tables[1].items()})
    except ValidationError as error:
        reason = expected_of(error, _THEIR_NAMES)
        raise ModelFileError(f"not a usable adapter config: {reason}", str(file)) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"not a usable adapter config: {error}", str(file)) from error
    base, revision = (
        value if isinstance(value, str) and value else None
        for value in (values.get("base_model_name_or_path"), values.get("revision"))
    )
    return AdapterConfig(base, lora, ranks, alphas, revision)


def _table(values: Any) -> dict[str, Any]:
    if values is not None and not isinstance(values, dict):
        raise ValueError("rank_pattern and alpha_pattern are objects")
    return values or {}


def base_fields(base: str | Path | None) -> dict[str, str | None]:
    """base_model_name_or_path and revision, by which peft finds the base as well, here and elsewhere: a repository of
    the hub, for a model that `KNOWN` names too; else an absolute path.

    base: a folder, a name that we know, or a name on the hub, OWNER/NAME, hf:OWNER/NAME or with @REVISION.
    """
    if base is None:
        return {"base_model_name_or_path": None, "revision": None}
    name, hub = str(base), re.fullmatch(r"(?:hf:)?([^/@]+/[^/@]+)(?:@(.+))?", str(base))
    if isinstance(base, Path) or Path(name).expanduser().exists():
        return {"base_model_name_or_path": str(Path(name).expanduser().absolute()), "revision": None}
    if name in KNOWN and KNOWN[name].hub is not None:
        return {"base_model_name_or_path": KNOWN[name].hub, "revision": None}
    if hub is not None:
        return {"base_model_name_or_path": hub[1], "revision": hub[2]}
    return {"base_model_name_or_path": name, "revision": None}


def config_fields(adapters: dict[str, LoRA], every: set[str]) -> dict[str, Any]:
    """adapter_config.json, with exceptions from the usual rank and alpha as patterns. adapters: by Hugging Face's names
    of modules; every: of all that could have one."""
    first = next(iter(adapters.values())).config
    rank = Counter(adapter.config.rank for adapter in adapters.values()).most_common(1)[0][0]
    alpha = Counter(adapter.config.strength for adapter in adapters.values()).most_common(1)[0][0]
    short = {module.rpartition(".")[2] for module in adapters}
    whole = {module for module in every if module.rpartition(".")[2] in short} == set(adapters)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.rank_stabilized,
        "use_dora": first.dora,
        "target_modules": sorted(short if whole else adapters),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {re.escape(m): a.config.rank for m, a in adapters.items() if a.config.rank != rank},
        "alpha_pattern": {re.escape(m): a.config.strength for m, a in adapters.items() if a.config.strength != alpha},
    }
