"""The recipe's section `data`, resolved: what is trained on, and the tokenizer that makes or made its ids.

What is prepared goes into the cache under a name made from the text's fingerprint and the tokenizer's, so
the second run of a recipe starts at once, and a change in either prepares anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from shoestring.core.errors import ConfigError, DataError, TokenizerError
from shoestring.core.files import atomic_folder, cache_dir
from shoestring.data.config import DataConfig, NewTokenizerConfig, PartConfig
from shoestring.data.corpus import Corpus, Prepared, Untouched
from shoestring.data.loader import ExternalVectors
from shoestring.data.prepare import prepare_source, settings_of, source_of
from shoestring.data.shards import FORMAT, SPLITS, ShardFolder, is_shard_folder
from shoestring.data.sources import Source
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer
from shoestring.models.config import ModelConfig
from shoestring.models.external import open_external
from shoestring.models.named_tokenizer import named_tokenizer
from shoestring.train import parallel
from shoestring.train.run import find_once

Say = Callable[[str], None] | None


def open_corpus(config: DataConfig, tokenizer: Tokenizer | None = None, say: Say = None) -> Corpus:
    """What a recipe trains on; text is prepared into the cache where need be: by the first process, and the others open
    it; where one does not see that disk, it prepares its own.

    tokenizer: of the model to continue from; it wins over `config.tokenizer`. Raises DataError when a split
    is empty, TokenizerError for shards of different tokenizers.
    """
    weights = [part.weight for part in config.parts]
    if config.on_the_fly:
        if tokenizer is None:
            assert isinstance(config.tokenizer, str)
            tokenizer = named_tokenizer(config.tokenizer, say)[0]
        sources = [source_of(config, part) for part in config.parts]
        return Untouched(sources, weights, tokenizer, config.packing)
    names = parallel.by_first(lambda: [str(shards.folder) for shards in _prepared(config, tokenizer, say)])
    seen = all(map(is_shard_folder, names))
    opened = [ShardFolder(name) for name in names] if seen else _prepared(config, tokenizer, say)
    for part, shards in zip(config.parts, opened, strict=True):
        for split in SPLITS:
            if not shards.token_count(split):
                raise DataError(f"the {split} split is empty", part.source, "use more text, or another data.validation")
    return Prepared(opened, weights, config.packing)


def open_dataset(config: DataConfig, tokenizer: Tokenizer | None = None, say: Say = None) -> ShardFolder:
    """The shards of a recipe with one source."""
    corpus = open_corpus(config, tokenizer, say)
    assert isinstance(corpus, Prepared) and len(corpus.folders) == 1
    return corpus.folders[0]


def _prepared(config: DataConfig, tokenizer: Tokenizer | None, say: Say) -> list[ShardFolder]:
    if tokenizer is None and isinstance(config.tokenizer, str):
        tokenizer = named_tokenizer(config.tokenizer, say)[0]
    shards = {part: ShardFolder(part.source) for part in config.parts if is_shard_folder(part.source)}
    sources = {part: source_of(config, part) for part in config.parts if part not in shards}
    if tokenizer is None and shards:  # text beside shards is made into ids as they were
        tokenizer = next(iter(shards.values())).tokenizer
    for part, folder in shards.items():
        if config.max_documents is not None:
            hint = "leave it out, or prepare the text with --max-documents"
            raise ConfigError(f"data.max_documents: {part.source} is prepared already, and read whole", hint=hint)
        if tokenizer is not None and tokenizer.fingerprint() != folder.tokenizer_fingerprint:
            raise TokenizerError(
                "these shards were made with another tokenizer", part.source, "prepare the text with this one"
            )
    if tokenizer is None and len(sources) > 1:
        tokenizer = _trained(config, sources, say)
    return [shards.get(part) or _prepare(config, sources[part], tokenizer, say) for part in config.parts]


def _prepare(config: DataConfig, source: Source, tokenizer: Tokenizer | None, say: Say) -> ShardFolder:
    settings = settings_of(config)
    chosen = tokenizer or config.tokenizer
    assert not isinstance(chosen, str)
    made_by = chosen.fingerprint() if isinstance(chosen, Tokenizer) else chosen.model_dump_json()
    folder = _place([FORMAT, source.fingerprint(), made_by, settings.identity()])
    if say is not None and not is_shard_folder(folder):
        say(f"preparing {source.source} (once; kept in {folder})")
    return prepare_source(source, chosen, folder, settings)


def _trained(config: DataConfig, sources: dict[PartConfig, Source], say: Say) -> Tokenizer:
    """One tokenizer for all texts, kept in the cache."""
    assert isinstance(config.tokenizer, NewTokenizerConfig)
    prints = [source.fingerprint() for source in sources.values()]
    some = [] if config.max_documents is None else [f"documents {config.max_documents}"]
    folder = _place([*prints, config.tokenizer.model_dump_json(), *some])
    if not (folder / "tokenizer.json").is_file():

        def texts() -> Iterator[str]:
            for source in sources.values():
                first = itertools.islice(source.documents(), config.max_documents)
                yield from (document.text for document in first if document.split == "train")

        made = train_tokenizer(texts(), config.tokenizer.vocabulary, config.tokenizer.min_frequency)
        with atomic_folder(folder, replace=True) as new:
            made.save(new)
    return Tokenizer.load(folder)


def external_vectors(
    model: ModelConfig, corpus: Corpus, say: Say = None
) -> dict[str, ExternalVectors]:
    """For each split the vectors that the model's input adapter takes, kept in the cache; {} where it takes none."""
    adapter = model.input_adapter
    if adapter is not None and adapter.source is None:
        raise ConfigError(
            "model.input_adapter has no source: there is nothing to take its vectors from",
            hint="name one, as model.input_adapter.source.encoder=minilm, or leave the adapter out",
        )
    if adapter is not None and adapter.source is not None:
        find_once(adapter.source.encoder, encoder=True)
    source = open_external(model, corpus.tokenizer, say)
    if source is None:
        return {}
    if not isinstance(corpus, Prepared) or len(corpus.folders) > 1:
        raise ConfigError(
            "model.input_adapter.source makes vectors for the documents of one prepared source",
            hint="leave out data.mixture and data.on_the_fly",
        )
    return {split: source.of_split(corpus.folders[0], split, cache_dir() / "external") for split in SPLITS}


def _place(key: object) -> Path:
    return cache_dir() / "prepared" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
