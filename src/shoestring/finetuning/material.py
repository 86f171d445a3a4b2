"""What a fine-tuning run is made of, opened and checked: the base model's folder, the examples, the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.data.supervised.batches import padded_length, padded_shares, row_sizes
from shoestring.data.supervised.dataset import SupervisedDataset
from shoestring.data.supervised.portion import Portion
from shoestring.finetuning.config import EVERYDAY, FinetuneRecipe, FinetuneTrainSection
from shoestring.finetuning.examples import prepare_dataset
from shoestring.finetuning.preserve import ordinary_examples
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import read_quantization
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import GenerationDefaults, check_rows, read_config, read_generation_config
from shoestring.models.peft_folder import is_adapter
from shoestring.models.weight_files import weight_paths
from shoestring.train import parallel
from shoestring.train.run import find_once, say
from shoestring.train.run_folder import Start

_SHORTEST_ROW, _LONGEST_ROW = 256, 2048  # tokens, when the recipe leaves the length open


@dataclass(frozen=True, kw_only=True)
class Material(Portion):
    """base: folder of the model to begin from. documents: whether a row holds several examples, or ends early.
    ordinary: examples on which the model is to stay as it is, where they are there already."""

    base: Path
    config: ModelConfig
    generation: GenerationDefaults
    ordinary: SupervisedDataset | None
    documents: bool


def open_material(start: Start) -> Material:
    """Raises ConfigError, DataError and ModelFileError for what does not fit together."""
    recipe: FinetuneRecipe = start.recipe
    settings = recipe.train
    base = find_once(recipe.model)
    if is_adapter(base):
        raise ModelFileError(
            "this is an adapter: fine-tuning begins from a whole model", str(base),
            f"merge it first: shoestring merge {recipe.model}",
        )  # fmt: skip
    config = read_config(base)
    if read_quantization(base) is not None:
        _check_frozen(recipe)
    if config.input_adapter is not None:
        raise ModelFileError(
            "this model adds the embeddings of another one to its input, which examples do not have: it cannot be"
            " fine-tuned", str(base), "teach it by text: shoestring pretrain RECIPE --model.init MODEL",
        )  # fmt: skip
    if settings.sequence_length is not None and settings.sequence_length > config.context:
        raise ConfigError(
            f"train.sequence_length ({settings.sequence_length}) is longer than the model's context ({config.context})"
        )
    longest = settings.sequence_length or min(config.context, _LONGEST_ROW)
    dataset = prepare_dataset(recipe.data, base, longest, say)
    held = recipe.preserve.source
    ordinary = None if held in (None, EVERYDAY) else ordinary_examples(str(held), recipe.preserve, base)
    check_rows(dataset.tokenizer, config, base)
    length = settings.sequence_length or min(max(dataset.counts.longest, _shortest_row(settings)), longest)
    tokens = settings.batch_tokens if settings.batch_rows is None else settings.batch_rows * length
    small = settings.batch_rows is None and settings.sequence_length is None and tokens < _SHORTEST_ROW
    each = length * parallel.shares()  # a step is rounded up to whole rows, but a small one is kept to
    rows = max(tokens // each if small else -(-tokens // each), 1)
    if settings.microbatch is not None and rows % settings.microbatch:
        raise ConfigError(f"train.microbatch ({settings.microbatch}) must divide the {rows} rows of each process")
    sizes = row_sizes(dataset, recipe.data.layout, length)
    documents = any(padded_length(tokens) != tokens or examples > 1 for tokens, examples in sizes)
    lengths = padded_shares(sizes)
    _check_weights(base, start)
    generation = read_generation_config(base)
    return Material(
        base=base, config=config, generation=generation, dataset=dataset, ordinary=ordinary, rows=rows, length=length,
        lengths=lengths, documents=documents,
    )  # fmt: skip


def _check_frozen(recipe: FinetuneRecipe) -> None:
    """Raises ConfigError for what is not done with a model whose weights are in few bits."""
    there = f"the weights of {recipe.model} are in few bits already"
    if recipe.adapter.method == "full":
        raise ConfigError(
            f"{there}, and such are not trained: an adapter beside them is",
            hint="take --method lora, or begin from the dense model",
        )
    named = {
        "adapter.method qlora": recipe.adapter.method == "qlora",
        "precision.compute int8": recipe.precision.compute == "int8",
        f"budget.weights {recipe.budget.weights}": recipe.budget.weights != "source",
    }
    for setting, is_set in named.items():
        if is_set:
            raise ConfigError(
                f"{there}: {setting} would round them again",
                hint="leave it out: --method lora trains on them as they are",
            )


def _shortest_row(settings: FinetuneTrainSection) -> int:
    """Tokens of a row where examples are shorter: a step is not to be larger for it."""
    if settings.batch_rows is not None:
        return _SHORTEST_ROW
    fitting = [tokens for tokens in range(1, _SHORTEST_ROW + 1) if padded_length(tokens) <= settings.batch_tokens]
    return max(fitting, default=1)


def _check_weights(base: Path, start: Start) -> None:
    """A run goes on with the weights that it began with. Raises ModelFileError for others."""
    if parallel.are_stages() and parallel.rank():  # whose folder may hold its own layers alone
        return
    digest = Fingerprint.of(weight_paths(base)).digest
    began = [event["digest"] for event in start.state.events if event["event"] == "source"]
    if start.checkpoint is None:
        start.state.events.append({"event": "source", "step": 0, "digest": digest})
    elif began and began[0] != digest:
        raise ModelFileError(
            "the model's weights are not those that this run began with", str(base), "put them back, or start a new run"
        )
