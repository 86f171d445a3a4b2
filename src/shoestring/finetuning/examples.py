"""`shoestring.prepare_dataset(data, MODEL)`: examples as one model is to learn them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from shoestring.core.errors import DataError, ModelFileError
from shoestring.core.files import atomic_write, cache_dir
from shoestring.data.supervised.config import SupervisedDataConfig
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.rows import Rows, given_rows
from shoestring.data.supervised.supervise import ModelSide, Say, build_dataset
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.folder import read_config, read_generation_config
from shoestring.models.named_tokenizer import named_tokenizer
from shoestring.models.peft_folder import find_base, is_adapter


def prepare_dataset(
    data: str | Path | SupervisedDataConfig | Rows,
    model: str | Path | Tokenizer | ModelSide,
    sequence_length: int | None = None,
    say: Say | None = None,
    **settings: object,
) -> SupervisedDataset:
    """Examples of `data` as `model`, a MODEL as everywhere or a tokenizer alone, is to learn them.

    data: or rows: dictionaries, a `datasets.Dataset`, an iterator over such. sequence_length: longer examples are cut
    on the right; None: the model's context. settings: fields of SupervisedDataConfig. Raises what
    `data.supervised.supervise.build_dataset` and `models.resolve.find_model` raise.
    """
    return build_dataset(data, model_side(model, say), sequence_length, say, **settings)


def kept_rows(rows: Rows) -> Path:
    """Rows as a file in the cache, named after its content, from which a run can be continued. Raises DataError."""
    lines = []
    for number, row in enumerate(given_rows(rows), 1):
        try:
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            raise DataError(f"not a row of text, numbers and lists: {error}", f"row {number}") from error
    text = "".join(lines)
    file = cache_dir() / "rows" / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.jsonl"
    if not file.is_file():
        with atomic_write(file) as out:
            out.write(text)
    return file


def model_side(model: str | Path | Tokenizer | ModelSide, say: Say | None = None) -> ModelSide:
    """What of a model its data depend on. Raises ModelFileError."""
    if isinstance(model, ModelSide):
        return model
    if isinstance(model, Tokenizer):
        return ModelSide.of(model)
    tokenizer, folder = named_tokenizer(model, say)
    if is_adapter(folder):
        try:
            folder = find_base(folder, say)
        except ModelFileError as error:
            if say is not None:
                say(f"{error.message}; so its context and its own end tokens are not known")
    if not (folder / "config.json").is_file():  # a tokenizer's folder, or an adapter's without its base
        return ModelSide.of(tokenizer)
    return ModelSide.of(tokenizer, read_generation_config(folder).eos_ids, read_config(folder).context)
