"""What stands in the place of RECIPE_OR_MODEL: a recipe, by name, file or run; or a model that is there. Torch-free."""

from __future__ import annotations

import difflib
from pathlib import Path

from shoestring.core.errors import ConfigError
from shoestring.forecast.form import Say
from shoestring.models.get import KNOWN
from shoestring.models.resolve import find_model
from shoestring.train.recipe_files import is_built_in, list_recipes, recipe_job


def is_model(name: str) -> bool:
    """Rather than a recipe. Raises ConfigError for what is neither."""
    path = Path(name).expanduser()
    if is_built_in(name) or path.suffix in (".yaml", ".yml"):
        return False
    if (path / "recipe.yaml").is_file():  # a run: of pretraining, its recipe has the shapes
        return recipe_job(path) != "pretrain"
    if path.exists() or name in KNOWN or "/" in name or name.startswith("hf:") or path.suffix.lower() == ".gguf":
        return True
    names = [*list_recipes(), *(known for known, model in KNOWN.items() if not model.encoder)]
    close = difflib.get_close_matches(name, names, 1)
    hint = (f"did you mean {close[0]}?\n" if close else "") + f"there are: {', '.join(names)}; or give a path"
    raise ConfigError(f"there is no recipe or model {name!r}", hint=hint)


def folder_of(name: str, say: Say) -> Path:
    """Of a MODEL; of an adapter, its base's."""
    folder = find_model(name, say=say)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        from shoestring.models.peft_folder import find_base

        folder = find_base(folder, say)
    return folder
