"""`shoestring.prepare_dataset(data, MODEL)`: examples as one model is to learn them."""

from __future__ import annotations

import os
from pathlib import Path

from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.supervise import ModelSide, Say, build_dataset
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.folder import read_config, read_generation_config
from shoestring.models.resolve import find_model


def prepare_dataset(
    data: str | Path | SupervisedDataConfig,
    model: str | Path | Tokenizer | ModelSide,
    sequence_length: int | None = None,
    say: Say | None = None,
    **settings: object,
) -> SupervisedDataset:
    """Examples of `data` as `model`, a MODEL as everywhere or a tokenizer alone, is to learn them.

    sequence_length: longer examples are cut on the right; None: the model's context. settings: fields of
    SupervisedDataConfig. Raises what `data.supervised.supervise.build_dataset` and `models.resolve.find_model` raise.
    """
    return build_dataset(data, model_side(model, say), sequence_length, say, **settings)


def model_side(model: str | Path | Tokenizer | ModelSide, say: Say | None = None) -> ModelSide:
    """What of a model its data depend on. Raises ModelFileError."""
    if isinstance(model, ModelSide):
        return model
    if isinstance(model, Tokenizer):
        return ModelSide.of(model)
    alone = Path(os.path.expanduser(model))
    folder = alone if os.path.isfile(alone / "tokenizer.json") else find_model(model, say=say)
    tokenizer = Tokenizer.load(folder)
    if not (folder / "config.json").is_file():  # a tokenizer's folder, or an adapter's
        return ModelSide.of(tokenizer)
    return ModelSide.of(tokenizer, read_generation_config(folder).eos_ids, read_config(folder).context)
