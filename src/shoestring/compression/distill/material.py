"""What a distillation is made of, opened and checked: teacher, student, what is read, the rows of a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoestring.compression.distill.config import DistillRecipe, StudentFolder
from shoestring.compression.distill.dataset import open_dataset
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.data.supervised.batches import padded_shares, row_sizes
from shoestring.data.supervised.portion import Portion
from shoestring.data.supervised.supervise import ModelSide
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import read_quantization
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import GenerationDefaults, check_rows, read_config, read_generation_config
from shoestring.models.peft_folder import WEIGHTS, find_base, is_adapter
from shoestring.models.weight_files import weight_paths
from shoestring.models.weights import TensorFile
from shoestring.train.run import find_once, say
from shoestring.train.run_folder import Start

FRESH = "a fresh model"


@dataclass(frozen=True)
class Side:
    """A model of the two. folder: as it is named, an adapter's too, None for a fresh one; base: with the weights."""

    name: str
    folder: Path | None
    base: Path | None
    config: ModelConfig
    tokenizer: Tokenizer | None

    @property
    def digest(self) -> str:
        """Of all weights."""
        return FRESH if self.base is None or self.folder is None else Fingerprint.of(weights_of(self.folder)).digest

    @property
    def weight_bytes(self) -> int:
        """Of all tensors on disk; of a fresh one in float32."""
        return self.config.parameter_count() * 4 if self.folder is None else tensor_bytes_of(self.folder)


@dataclass(frozen=True, kw_only=True)
class Material(Portion):
    """lora: whether an adapter is trained, on weights in few bits where `packed`. text: whether the data are text."""

    teacher: Side
    student: Side
    packed: bool
    lora: bool
    side: ModelSide
    generation: GenerationDefaults | None
    text: bool


def open_material(start: Start) -> Material:
    """Raises ConfigError, DataError and ModelFileError for what does not fit together."""
    recipe: DistillRecipe = start.recipe
    settings = recipe.train
    teacher, student = _teacher(recipe), _student(recipe)
    check_vocabulary(teacher, student)
    packed = student.base is not None and read_quantization(student.base) is not None
    lora = _trains_adapter(recipe, packed)
    tokenizer = student.tokenizer or teacher.tokenizer
    assert tokenizer is not None
    longest = min(teacher.config.context, student.config.context)
    if settings.sequence_length is not None and settings.sequence_length > longest:
        raise ConfigError(
            f"train.sequence_length ({settings.sequence_length}) is longer than what both models look at ({longest})"
        )
    generation = None if student.base is None else read_generation_config(student.base)
    if generation is None and teacher.base is not None:
        generation = read_generation_config(teacher.base)
    side = ModelSide.of(tokenizer, () if generation is None else generation.eos_ids, longest)
    dataset, text = open_dataset(recipe.data, side, settings.sequence_length, longest, say)
    for one in (teacher, student):
        check_rows(dataset.tokenizer, one.config, one.base)
    length = settings.sequence_length or min(dataset.sequence_length or longest, max(dataset.counts.longest, 1))
    rows = max(-(-settings.batch_tokens // length), 1)
    if settings.microbatch is not None:
        if settings.microbatch > rows:
            raise ConfigError(f"train.microbatch ({settings.microbatch}) is more than the {rows} rows of a step")
        rows = -(-rows // settings.microbatch) * settings.microbatch
    sizes = row_sizes(dataset, recipe.data.layout, length)
    lengths = padded_shares(sizes)
    _check_weights(teacher, student, start)
    return Material(
        teacher=teacher, student=student, packed=packed, lora=lora, side=side, generation=generation, dataset=dataset,
        text=text, rows=rows, length=length, lengths=lengths,
    )  # fmt: skip


def check_vocabulary(teacher: Side, student: Side) -> None:
    """Raises ConfigError, with what differs, for two models whose ids do not mean the same tokens."""
    hint = "take a student with the teacher's own tokenizer, or give --student a recipe: a fresh one gets it"
    first, second = teacher.tokenizer, student.tokenizer
    if first is None and second is None:
        raise ConfigError(
            "neither teacher nor student has a tokenizer", hint="put the teacher's tokenizer.json into its folder"
        )
    sizes = teacher.config.vocabulary, student.config.vocabulary
    if first is not None and second is not None:
        ours, theirs = (side.backend.get_vocab(with_added_tokens=True) for side in (first, second))
        if len(ours) != len(theirs):
            raise ConfigError(
                f"the teacher's vocabulary has {len(ours):,} tokens and the student's {len(theirs):,}: distributions"
                " over different tokens cannot be compared",
                hint=hint,
            )
        if ours != theirs:
            named = {number: token for token, number in theirs.items()}
            number, token = min((n, token) for token, n in ours.items() if named.get(n) != token)
            raise ConfigError(
                f"both vocabularies have {len(ours):,} tokens, but number {number:,} is {token!r} to the teacher and"
                f" {named.get(number)!r} to the student: distributions over different tokens cannot be compared",
                hint=hint,
            )
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the teacher has {sizes[0]:,} rows for tokens and the student {sizes[1]:,}: distributions over different"
            " tokens cannot be compared",
            hint=f"a fresh student takes the teacher's size: --model.vocabulary {sizes[0]}",
        )


def weights_of(folder: Path) -> list[Path]:
    """The files with weights of a model, or of an adapter and the model below it."""
    if is_adapter(folder):
        return [*weight_paths(find_base(folder)), folder / WEIGHTS]
    return weight_paths(folder)


def tensor_bytes_of(folder: Path) -> int:
    """Of all tensors of a model, or of an adapter and the model below it."""
    total = 0
    for path in weights_of(folder):
        if path.suffix != ".safetensors":
            total += path.stat().st_size
            continue
        with TensorFile(path) as file:
            total += sum(info.elements * info.dtype.itemsize for info in file.infos.values())
    return total


def _teacher(recipe: DistillRecipe) -> Side:
    folder = find_once(recipe.teacher)
    base = find_base(folder, say) if is_adapter(folder) else folder
    own = folder if (folder / "tokenizer.json").is_file() else base
    return _side(recipe.teacher, folder, base, own)


def _student(recipe: DistillRecipe) -> Side:
    if not isinstance(recipe.model, StudentFolder):
        return Side(FRESH, None, None, recipe.model, None)
    name = recipe.model.init
    folder = find_once(name)
    if is_adapter(folder):
        raise ModelFileError(
            "this is an adapter: a student is a whole model", str(folder), f"merge it first: shoestring merge {name}"
        )
    return _side(name, folder, folder, folder)


def _side(name: str, folder: Path, base: Path, of_tokenizer: Path) -> Side:
    config = read_config(base)
    if config.input_adapter is not None:
        raise ModelFileError(
            "this model adds the embeddings of another one to its input, which its partner does not see: it cannot be"
            " distilled", str(base), "take another model",
        )  # fmt: skip
    if config.memory is not None and config.memory.scope == "persistent":
        raise ModelFileError(
            "this model has a memory that is kept over texts, which its partner has not", str(base),
            "take another model, or one whose memory has scope document",
        )  # fmt: skip
    tokenizer = Tokenizer.load(of_tokenizer) if (of_tokenizer / "tokenizer.json").is_file() else None
    return Side(name, folder, base, config, tokenizer)


def _trains_adapter(recipe: DistillRecipe, packed: bool) -> bool:
    method = recipe.adapter.method
    if packed and method == "full":
        raise ConfigError(
            "adapter.method full: this student's matrices are kept in few bits, and what is rounded has no gradient",
            hint="leave it out, which trains an adapter on them; or distill the dense model and quantize it then",
        )
    if packed and recipe.precision.saved != "auto":
        raise ConfigError("precision.saved is for whole models, and on weights in few bits an adapter is trained")
    return packed or method == "lora"


def _check_weights(teacher: Side, student: Side, start: Start) -> None:
    """A run goes on with the weights that it began with. Raises ModelFileError for others."""
    digests = {"digest": student.digest, "teacher": teacher.digest}
    began = next((event for event in start.state.events if event["event"] == "source"), None)
    if began is None:
        if start.checkpoint is None:
            start.state.events.append({"event": "source", "step": 0, **digests})
        return
    for key, one in (("digest", student), ("teacher", teacher)):
        if began.get(key) != digests[key]:
            raise ModelFileError(
                f"the weights of {one.name} are not those that this run began with", str(one.folder),
                "put them back, or start a new run",
            )  # fmt: skip
