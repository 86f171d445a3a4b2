"""An adapter on disk is a PEFT folder, adapter_config.json and adapter_model.safetensors, as peft reads and writes it.

Tensors are called base_model.model.MODULE.lora_A.weight [r, in], .lora_B.weight [out, r] and
.lora_magnitude_vector [out] (DoRA), with Hugging Face's module names. What we do not compute (other types, trained
biases or whole modules, initializations that change the base) is refused by name, never skipped; what the config says
is `models.peft_config`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ModelFileError, NetworkError, RunError
from shoestring.core.files import atomic_folder
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import DEFAULT, adapted_linears, adapter_names, attach_to, merge, switch
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import family_of, read_json
from shoestring.models.folder import load_model, read_config, read_generation_config, save_model, stored_dtypes
from shoestring.models.peft_config import CONFIG, base_fields, config_fields, read_adapter_config
from shoestring.models.resolve import Say, find_model
from shoestring.models.weights import TensorFile, save_file
from shoestring.models.wheels import KNOWN
from shoestring.nn.config import DenseConfig
from shoestring.nn.lora import LoRA

WEIGHTS = "adapter_model.safetensors"
NOTE = "shoestring.json"  # {"base": a name of `models.wheels.KNOWN`}, where the config has its name on the hub
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")
_PARTS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def is_adapter(folder: str | Path) -> bool:
    """Whether this is the folder of an adapter and not of a whole model."""
    folder = Path(folder)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def find_base(folder: str | Path, say: Say | None = None) -> Path:
    """The folder of the model that an adapter belongs to. Raises ModelFileError when it is not named or not there."""
    config = read_adapter_config(folder)
    base, where = config.base, str(Path(folder) / CONFIG)
    if base is None:
        raise ModelFileError("base_model_name_or_path does not name the base model", where)
    try:
        return find_model(_as_here(Path(folder), base, config.revision), say=say)
    except (ModelFileError, NetworkError) as error:
        hint = f"set base_model_name_or_path in {where} to where the base model is now"
        raise ModelFileError(f"the adapter's base model is not there: {error.message}", error.where, hint) from error


def _as_here(folder: Path, base: str, revision: str | None) -> str:
    """What finds the base of an adapter: its config's name, or our own for the model that it was trained on."""
    if (folder / NOTE).is_file():
        known = read_json(folder / NOTE).get("base")
        if isinstance(known, str) and known in KNOWN and KNOWN[known].hub == base:
            return known
    return base if revision is None or Path(base).expanduser().exists() else f"{base}@{revision}"


def load_adapter(decoder: Decoder, folder: str | Path, name: str = DEFAULT) -> list[str]:
    """Attach the adapter in a PEFT folder, frozen base and all, and make it active; -> the linears' names.

    Raises ModelFileError with what is missing, unexpected or misshapen.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    if name in adapter_names(decoder):
        raise ModelFileError(f"an adapter named {name!r} is attached already", str(folder))
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ModelFileError(
            "the adapter is pickled, and a pickle can run any program" if pickled else f"no {WEIGHTS} in this folder",
            str(folder), "save it with safetensors",
        )  # fmt: skip
    ours = _module_names(decoder)
    elsewhere = _module_names(build(decoder.config, device="meta")).keys() if decoder.is_part else frozenset[str]()
    with TensorFile(folder / WEIGHTS) as file:
        held: dict[str, set[str]] = {}
        for tensor in file.infos:
            match = _TENSOR.fullmatch(tensor)
            if match is not None and match[1] not in ours and match[1] in elsewhere:
                continue
            if match is None or match[1] not in ours:
                raise _foreign(tensor, file.path)
            held.setdefault(match[1], set()).add(match[2])
        if not held:
            raise ModelFileError("there are no adapters in this file", str(file.path))
        try:
            of_modules = {module: config.of(module) for module in held}
        except ValueError as error:
            raise ModelFileError(f"not a usable adapter config: {error}", str(folder / CONFIG)) from error
        wanted = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if config.lora.dora else set())
        for module, parts in held.items():
            if parts != wanted:
                differing = sorted(parts ^ wanted)[0]
                kind = "is missing" if differing in wanted else "is there, but use_dora is false"
                raise ModelFileError(f"tensor {_PREFIX}{module}.{differing} {kind}", str(file.path))
            of_module = of_modules[module]
            rank = file.infos[f"{_PREFIX}{module}.lora_A.weight"].shape[0]
            if rank != of_module.rank:
                message = f"the adapter of {module} has rank {rank}, {CONFIG} says {of_module.rank}"
                raise ModelFileError(message, str(file.path))
        decoder.requires_grad_(False)
        for module in held:
            adapter = attach_to(decoder, ours[module], of_modules[module], name)
            for part, parameter in _tensors(adapter, module).items():
                if file.infos[part].shape != tuple(parameter.shape):
                    message = f"tensor {part} has shape {list(file.infos[part].shape)}, not {list(parameter.shape)}"
                    raise ModelFileError(message, str(file.path), "the adapter belongs to another model")
                file.read_into(part, parameter)
    switch(decoder, name)
    return [ours[module] for module in held]


@torch.no_grad()
def read_adapter(decoder: Decoder, folder: str | Path, name: str = DEFAULT) -> None:
    """The weights of a folder that `write_adapter_files` wrote into the adapter of this name, which is attached."""
    theirs = {ours: module for module, ours in _module_names(decoder).items()}
    with TensorFile(Path(folder) / WEIGHTS) as file:
        for linear, adapted in adapted_linears(decoder).items():
            if name in adapted.adapters:
                adapter = adapted.adapters[name]
                assert isinstance(adapter, LoRA)
                for part, parameter in _tensors(adapter, theirs[linear]).items():
                    file.read_into(part, parameter)
                torch.autograd.graph.increment_version(list(adapter.parameters()))


def _foreign(tensor: str, path: Path) -> ModelFileError:
    """Why a tensor of an adapter cannot be used."""
    way = "have peft merge it: merge_and_unload(), then save_pretrained(), and use that model"
    part = next((part for part in ("embed_tokens", "lm_head") if f".{part}." in f".{tensor}"), None)
    called = {"embed_tokens": "embedding", "lm_head": "head"}.get(part or "", "")
    if part is not None and "lora_" in tensor:
        return ModelFileError(
            f"the adapter changes the model's {called} ({tensor}), and only linears of the blocks can be adapted here",
            str(path), way,
        )  # fmt: skip
    if part is not None:
        return ModelFileError(
            f"the adapter holds a whole {called} ({tensor}), as peft saves it where tokens were added or"
            " modules_to_save names it, and only linears of the blocks can be adapted here", str(path), way,
        )  # fmt: skip
    if tensor.endswith((".gate.lora_A.weight", ".gate.lora_B.weight")):
        return ModelFileError(
            f"the adapter changes the router of experts ({tensor}), which is not supported here", str(path), way
        )
    return ModelFileError(f"tensor {tensor} does not belong to this model's linears", str(path))


def load_adapted(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    say: Say | None = None,
) -> tuple[Decoder, Path]:
    """-> the base model with the adapter of a PEFT folder attached, at rest: `train()` turns its dropout on. And the
    base model's folder."""
    base = find_base(folder, say)
    decoder = load_model(base, device=device, dtype=dtype)
    load_adapter(decoder, folder)
    return decoder, base


def save_adapter(
    decoder: Decoder,
    folder: str | Path,
    base: str | Path | None,
    name: str = DEFAULT,
    tokenizer: Tokenizer | None = None,
    replace: bool = False,
) -> None:
    """Write a PEFT folder that appears whole or not at all. base: what the base model is called (see `base_fields`)."""
    with atomic_folder(folder, replace=replace) as temporary:
        write_adapter_files(decoder, temporary, base, name, tokenizer)


def write_adapter_files(
    decoder: Decoder,
    folder: str | Path,
    base: str | Path | None,
    name: str = DEFAULT,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write the files of a PEFT folder into an existing folder, which the caller makes appear at once."""
    folder = Path(folder)
    theirs = {ours: module for module, ours in _module_names(decoder).items()}
    adapters: dict[str, LoRA] = {}
    for linear, module in adapted_linears(decoder).items():
        if name in module.adapters:
            adapter = module.adapters[name]
            assert isinstance(adapter, LoRA)
            adapters[theirs[linear]] = adapter
    assert adapters, f"there is no adapter {name!r}"
    tensors = {key: tensor for module, adapter in adapters.items() for key, tensor in _tensors(adapter, module).items()}
    on_cpu = {key: tensor.to("cpu").contiguous() for key, tensor in tensors.items()}
    save_file(on_cpu, folder / WEIGHTS, metadata={"format": "pt"})
    fields = {**config_fields(adapters, set(theirs.values())), **base_fields(base)}
    (folder / CONFIG).write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if base in KNOWN and fields["base_model_name_or_path"] == KNOWN[str(base)].hub:
        (folder / NOTE).write_text(json.dumps({"base": base}) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def _module_names(decoder: Decoder) -> dict[str, str]:
    """Hugging Face's name -> ours, for every linear of the blocks, adapted or not."""
    family = family_of(decoder.config)
    adapted = adapted_linears(decoder)
    names = {}
    for name, module in decoder.named_modules():
        if name.startswith("blocks.") and hasattr(module, "in_features"):
            if not any(name.startswith(f"{outer}.") for outer in adapted):
                try:
                    names[family.tensor_name(f"{name}.weight").removesuffix(".weight")] = name
                except KeyError:
                    continue  # a part of a linear that is not one matrix
    return names


def _tensors(adapter: LoRA, module: str) -> dict[str, Tensor]:
    return {
        f"{_PREFIX}{module}.{_PARTS[part]}": parameter.detach()
        for part, parameter in adapter.named_parameters(recurse=False)
    }


def merge_folder(
    adapter: str | Path, out: str | Path | None = None, say: Say | None = None, dtype: str | torch.dtype = "auto"
) -> Path:
    """Fold an adapter into its base and write a model folder, tokenizer included; -> the folder.

    adapter: a PEFT folder or a run. out: a new folder; None is ADAPTER-merged, or OUT/merged for a run. dtype: what the
    weights are rounded to once they are merged, in float32; "auto": as the base's are stored. Raises ConfigError for an
    unknown dtype, ModelFileError when there is no adapter, RunError when the folder exists.
    """
    chosen = None if dtype == "auto" else resolve_dtype(dtype)
    folder = find_model(adapter, say=say)
    if not is_adapter(folder):
        raise ModelFileError("this is a whole model: there is nothing to merge", str(folder))
    if out is None:
        in_run = (folder.parent / "recipe.yaml").is_file()
        out = folder.parent / "merged" if in_run else folder.parent / f"{folder.name}-merged"
    out = Path(out)
    if out.exists():
        raise RunError("this folder exists already", str(out), "choose another --out")
    base = find_base(folder, say)
    if not isinstance(read_config(base).linear, DenseConfig):
        raise ModelFileError(
            "the adapter's base has factors for matrices", str(base), "shoestring merge folds adapters into such"
        )
    stored = stored_dtypes(base)
    exact = torch.promote_types(stored["embedding.weight"], torch.float32)
    decoder, base = load_adapted(folder, dtype=exact, say=say)
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    dtypes = stored if chosen is None else chosen
    save_model(merge(decoder), out, tokenizer, read_generation_config(base), dtypes=dtypes)
    return out
