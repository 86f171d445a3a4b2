"""The families we read and write, and the config.json of a model folder. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoestring.core import foreign
from shoestring.core.errors import ModelFileError
from shoestring.core.files import LFS_HINT, LFS_POINTER, is_lfs_pointer
from shoestring.models.config import ModelConfig
from shoestring.models.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from shoestring.models.families.experts import MIXTRAL, QWEN3_MOE
from shoestring.models.families.family import Family
from shoestring.models.families.llama import LLAMA
from shoestring.models.families.qwen2 import QWEN2
from shoestring.models.families.qwen3 import QWEN3
from shoestring.models.families.shoestring import SHOESTRING
from shoestring.models.quantization import Scheme, split_config

# The first that can express a config writes it: ours comes last, because transformers cannot read it.
_IN_ORDER = (QWEN3, QWEN2, LLAMA, QWEN3_MOE, MIXTRAL, DEEPSEEK_V3, DEEPSEEK_V2, SHOESTRING)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _IN_ORDER}


def family_of(config: ModelConfig) -> Family:
    """The first family that can express this config; our own can express all."""
    return next(family for family in FAMILIES.values() if family.expresses(config))


def family_named(model_type: Any, where: str | None = None) -> Family:
    """The family of a config.json's model_type. Raises ModelFileError."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        said = (
            "there is no model_type" if model_type is None else f"model_type {model_type!r} is not supported"
        )
        raise ModelFileError(said, where, f"supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def read_config(folder: str | Path) -> ModelConfig:
    """The config of a model folder. Raises ModelFileError with the field that is wrong or not supported."""
    return read_config_and_ignored(folder)[0]


def read_config_and_ignored(folder: str | Path) -> tuple[ModelConfig, list[str]]:
    """The config, and the names of the fields in config.json that do not change what the model computes."""
    values = read_json(Path(folder) / "config.json")
    where = str(Path(folder) / "config.json")
    values, _ = split_config(values, where)
    return family_named(values.get("model_type"), where).read_config(values, where)


def read_quantization(folder: str | Path) -> Scheme | None:
    """How the linears of a model folder are kept; None where they are dense. Raises ModelFileError."""
    file = Path(folder) / "config.json"
    return split_config(read_json(file), str(file))[1]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelFileError."""
    try:
        content = foreign.read_json(file)
    except FileNotFoundError:
        folder = file.parent
        if not folder.is_dir():
            raise ModelFileError("there is no such folder", str(folder)) from None
        if (folder / "adapter_config.json").is_file():
            raise ModelFileError(
                "this is an adapter, not a model", str(folder), "merge it into its base first"
            ) from None
        raise ModelFileError(
            f"no {file.name} in this folder", str(folder), "give a Hugging Face model folder"
        ) from None
    except ValueError as error:
        if is_lfs_pointer(file):
            raise ModelFileError(LFS_POINTER, str(file), LFS_HINT) from error
        raise ModelFileError(f"not valid JSON: {error}", str(file), "fetch the model again") from error
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror}", str(file)) from error
    if not isinstance(content, dict):
        raise ModelFileError("not a JSON object", str(file), "fetch the model again")
    return content


def config_fields(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The content of config.json for a model with weights of this dtype ("float32", "bfloat16", ...)."""
    family = family_of(config)
    # torch_dtype is what transformers before 5 reads.
    head = {"architectures": [family.architecture], "model_type": family.model_type}
    return {**head, **family.write(config), "dtype": dtype, "torch_dtype": dtype}
