"""The recipe's section `data`, resolved: token shards and the tokenizer that made them.

What is prepared goes into the cache under a name made from the text's fingerprint and the tokenizer's, so
the second run of a recipe starts at once, and a change in either prepares anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from shoestring.core.errors import DataError
from shoestring.core.files import cache_dir
from shoestring.data.config import DataConfig, NewTokenizerConfig
from shoestring.data.loader import ExternalVectors
from shoestring.data.prepare import prepare_recipe, recipe_source
from shoestring.data.shards import SPLITS, ShardFolder, is_shard_folder
from shoestring.data.sources import Source
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.config import ModelConfig
from shoestring.models.external import open_external
from shoestring.models.resolve import find_model
from shoestring.train import parallel
from shoestring.train.run import find_once


def open_dataset(
    config: DataConfig, tokenizer: Tokenizer | None = None, say: Callable[[str], None] | None = None
) -> ShardFolder:
    """The shards of a recipe's data, prepared into the cache where need be: by the first process, and the others open
    them; where one does not see that disk, it prepares its own.

    tokenizer: of the model to continue from; it wins over `config.tokenizer`. Raises DataError when a split
    is empty.
    """
    folder = Path(parallel.by_first(lambda: str(_prepared(config, tokenizer, say).folder)))
    shards = ShardFolder(folder) if is_shard_folder(folder) else _prepared(config, tokenizer, say)
    for split in ("train", "validation"):
        if not shards.token_count(split):
            raise DataError(
                f"the {split} split is empty", config.source, "use more text, or another data.validation"
            )
    return shards


def _prepared(config: DataConfig, tokenizer: Tokenizer | None, say: Callable[[str], None] | None) -> ShardFolder:
    if tokenizer is None and isinstance(config.tokenizer, str):
        tokenizer = named_tokenizer(config.tokenizer, say)
    if is_shard_folder(config.source):
        return prepare_recipe(config, tokenizer, config.source)
    source = recipe_source(config)
    folder = _cached(config, tokenizer, source)
    if say is not None and not is_shard_folder(folder):
        say(f"preparing {config.source} (once; kept in {folder})")
    return prepare_recipe(config, tokenizer, folder, source)


def external_vectors(
    model: ModelConfig, shards: ShardFolder, say: Callable[[str], None] | None = None
) -> dict[str, ExternalVectors]:
    """For each split the vectors that the model's input adapter takes, kept in the cache; {} where it takes none."""
    adapter = model.input_adapter
    if adapter is not None and adapter.source is not None:
        find_once(adapter.source.encoder)
    source = open_external(model, shards.tokenizer, say)
    if source is None:
        return {}
    return {split: source.of_split(shards, split, cache_dir() / "external") for split in SPLITS}


def named_tokenizer(name: str, say: Callable[[str], None] | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer folder or of a MODEL."""
    folder = Path(name)
    return Tokenizer.load(folder if os.path.isfile(folder / "tokenizer.json") else find_model(name, say=say))


def _cached(config: DataConfig, tokenizer: Tokenizer | None, source: Source) -> Path:
    if tokenizer is not None:
        made_by = tokenizer.fingerprint()
    else:
        assert isinstance(config.tokenizer, NewTokenizerConfig)
        made_by = config.tokenizer.model_dump_json()
    key = json.dumps([source.fingerprint(), made_by, config.shard_tokens])
    return cache_dir() / "prepared" / hashlib.sha256(key.encode()).hexdigest()[:16]
