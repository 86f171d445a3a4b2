"""A name to the tokenizer that it stands for: of a tokenizer's folder, a model, or an adapter, maybe its base's."""

from __future__ import annotations

import os
from pathlib import Path

from shoestring.data.tokenizer import Tokenizer
from shoestring.models.peft_folder import find_base, is_adapter
from shoestring.models.resolve import Say, find_model


def named_tokenizer(name: str | Path, say: Say | None = None) -> tuple[Tokenizer, Path]:
    """The tokenizer of a tokenizer folder or of a MODEL, and the folder that was named.

    Raises ModelFileError, TokenizerError and NetworkError.
    """
    alone = Path(os.path.expanduser(name))
    folder = alone if os.path.isfile(alone / "tokenizer.json") else find_model(name, say=say, encoder=True)
    lends = is_adapter(folder) and not (folder / "tokenizer.json").is_file()
    return Tokenizer.load(find_base(folder, say) if lends else folder), folder
