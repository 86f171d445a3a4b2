"""What a pretraining run is made of, opened and checked: text as shards, the model's config, a way to its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shoestring.core.errors import ConfigError, DataError
from shoestring.data.corpus import Corpus
from shoestring.data.loader import ExternalVectors
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, read_config
from shoestring.offload.pipeline.load import fresh_part, load_trained_part
from shoestring.offload.pipeline.place import Place
from shoestring.pretraining.config import InitFrom, PretrainRecipe
from shoestring.pretraining.dataset import external_vectors, open_corpus
from shoestring.pretraining.staged import last_model
from shoestring.pretraining.stages_config import stage_model
from shoestring.train.exact_weights import load_trained
from shoestring.train.mup import scale_fresh
from shoestring.train.optimizer import block_matrices
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.run import find_once, say
from shoestring.train.run_folder import Start


@dataclass(frozen=True)
class Material:
    """make: the model in float32, fresh, from a model to continue from, or from the checkpoint of a run that goes on.
    origin: the folder of these two, None for a fresh one. config: as it is at the end of the run; what `make` gives may
    have fewer layers, where a run of stages grows; given a place, it gives the part that lies there.

    external: for each split the vectors that the model's input adapter takes, {} where it takes none.
    """

    config: ModelConfig
    corpus: Corpus
    external: dict[str, ExternalVectors]
    make: Callable[..., Decoder]
    origin: Path | None

    @property
    def digest(self) -> str:
        """Of the text, by which a run that goes on knows it again."""
        return self.corpus.digest


def open_material(start: Start, device: torch.device) -> Material:
    """Raises ConfigError, DataError and ModelFileError for what does not fit together."""
    recipe: PretrainRecipe = start.recipe
    folder, tokenizer = start.checkpoint, None
    if isinstance(recipe.model, InitFrom):
        source = find_once(recipe.model.init)
        tokenizer = Tokenizer.load(source)
        folder = folder or source
    corpus = open_corpus(recipe.data, tokenizer, say)
    if start.checkpoint is not None and start.state.data.get("shards") != corpus.digest:
        raise DataError(
            "the text or its preparation has changed since this run began",
            recipe.data.named,
            "continue from its model with --model.init instead",
        )
    if folder is None:
        assert isinstance(recipe.model, ModelConfig)
        config = recipe.model
    else:
        config = read_config(folder)
        if start.checkpoint is not None:
            config = last_model(recipe, config, start.state)
    _check_sizes(recipe, config, corpus)

    def make(place: Place | None = None) -> Decoder:
        if folder is None:
            first = stage_model(config, recipe.train.portions[0].layers)
            if place is None:
                decoder = build(first, device=device, seed=recipe.seed)
            else:
                decoder = fresh_part(first, place, recipe.seed, device)
            if isinstance(recipe.optimizer, AdamWConfig) and recipe.optimizer.base_width is not None:
                scale_fresh(decoder, block_matrices(decoder), recipe.optimizer.base_width)
            return decoder
        if place is not None:
            return load_trained_part(folder, place, device)
        if start.checkpoint is not None:
            return load_trained(folder, device)
        return load_model(folder, device=device, dtype=torch.float32)

    return Material(config, corpus, external_vectors(config, corpus, say), make, folder)


def _check_sizes(recipe: PretrainRecipe, config: ModelConfig, corpus: Corpus) -> None:
    if corpus.vocabulary_size > config.vocabulary:
        raise ConfigError(
            f"the tokenizer has {corpus.vocabulary_size:,} ids and the model rows for {config.vocabulary:,}",
            hint=f"set model.vocabulary to at least {corpus.vocabulary_size}, or data.tokenizer.vocabulary to"
            f" {config.vocabulary}",
        )
    if recipe.train.sequence_length > config.context:
        raise ConfigError(
            f"train.sequence_length ({recipe.train.sequence_length}) is longer than the model's context"
            f" ({config.context})"
        )
