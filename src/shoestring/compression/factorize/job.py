"""`factorize`: a model folder in, the same model with the matrices of its blocks as products of two thin ones out.

Text goes through the dense blocks once, which tells what each rank of each matrix would keep, and ranks are chosen for
all of them by one budget. Then it goes through them again: block after block is read, factorized by what reaches its
linears, and written beside the folder that will be (`compression.unfinished`), so that a run that was stopped goes on
behind the last whole block. The folder is of our own family (`nn.config.FactorizedConfig`), or with `dense` of the
model's own, its matrices multiplied out.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.decoding import decode_both
from shoestring.compression.ends import begin, copied, measured_on
from shoestring.compression.factorize.blocks import Fitted, factorize_block, look
from shoestring.compression.factorize.config import FactorizeConfig, factorize_config, target
from shoestring.compression.factorize.memory import make_room
from shoestring.compression.factorize.ranks import Matrix, choose
from shoestring.compression.factorize.result import Factorized, MatrixRank
from shoestring.compression.factorize.sensitivity import loss_weights
from shoestring.compression.passage import Passage, pass_through
from shoestring.compression.quantize.blocks import round_small
from shoestring.compression.quantize.config import LINEARS
from shoestring.compression.quantize.scaling import Kept
from shoestring.compression.read_block import read_block
from shoestring.compression.report import Decoding, write_report
from shoestring.compression.room import Room, hidden_states, keep_to, process_bytes, refusals_told
from shoestring.compression.tensor_stream import Streamed, join
from shoestring.compression.unfinished import Unfinished, unfinished
from shoestring.compression.walk import change_blocks
from shoestring.core import matmul
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.core.files import atomic_folder, check_new
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import counted, format_count, parse_bytes
from shoestring.core.waiting import waiting
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import allocate, build, build_block
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.common import dense_parts
from shoestring.models.families.registry import family_of
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import check_rows, read_generation_config, rounded_to, write_configs
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say, find_model
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.config import DenseConfig, FactorizedConfig, LowRankConfig
from shoestring.nn.low_rank import LowRankLinear
from shoestring.train.first_use import first_use

FLOOR = 0.25  # of what a matrix would have if all were shrunk alike
Ranks = list[dict[str, int]]  # for each block those of the matrices that become factors, by name


def factorize(
    model: str | Path,
    out: str | Path,
    parameters: str | int | None = None,
    rank: int | None = None,
    calibrate: str | Path | None = None,
    dense: bool = False,
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    seed: int | None = None,
    dtype: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
) -> Factorized:
    """Write a copy of `model` whose linears are products of two thin matrices into the new folder `out`.

    parameters: of the whole model then, as "0.7x" or "80M", for which ranks are chosen; or `rank`: one for all.
    calibrate: any source of text or examples, for whose inputs the factors are the best; without it for any. dense:
    write the products, which any tool reads, and which is no smaller. memory: bytes ("3GB") of the whole process at
    most. The others are those of `compression.factorize.config.FactorizeConfig`. Where there is text, the loss on a
    part of it that is not calibrated with is measured before and after. A run that was stopped goes on where it was if
    it is asked for the same. Raises ConfigError, DataError, ModelFileError, BudgetError, and RunError where the folder
    exists.
    """
    given: dict[str, Any] = {
        "parameters": None if parameters is None else str(parameters), "rank": rank,
        "calibrate": None if calibrate is None else str(calibrate), "dense": dense, "rows": rows, "context": context,
        "held_out": held_out, "seed": seed, "dtype": dtype, "columns": columns, "on_bad_line": on_bad_line,
    }  # fmt: skip
    settings = factorize_config(given)
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    check_new(out)
    allocator.install()
    started = time.perf_counter()
    folder = find_model(model, say=say)
    if is_adapter(folder):
        raise ConfigError(
            f"{model} is an adapter, and has no weights of its own to factorize",
            hint=f"fold it into its base first: shoestring merge {model}",
        )
    with refusals_told("factorizing"), WeightFiles(folder) as files, torch.no_grad():
        job = _Job(files, folder, settings, budget, say)
        with unfinished(Path(out), job.made_of(), say, first=True) as work:
            losses = job.run(work)
            with atomic_folder(out) as temporary:
                weight_bytes = job.finish(work, temporary)
                took = time.perf_counter() - started, peak_rss_bytes()
                speeds = decode_both(folder, temporary, files.config, budget)
                result = _result(job, work, Path(out), str(model), losses, weight_bytes, speeds, took)
                write_report(result.report(), temporary)
    return result


def _result(
    job: _Job, work: Unfinished, out: Path, model: str, losses: tuple[float, float], weight_bytes: int,
    speeds: tuple[Decoding | None, Decoding | None], took: tuple[float, int],
) -> Factorized:  # fmt: skip
    text, config = job.text, job.files.config
    stored = sum(place.info.elements * place.info.dtype.itemsize for place in job.files.places.values())
    return Factorized(
        folder=out, model=model, settings=job.settings.model_dump(mode="json"),
        before=measured_on(text, stored, losses[0], speeds[0]),
        after=measured_on(text, weight_bytes, losses[1], speeds[1]),
        parameters=(config.parameter_count(), job.factors_config(work.parts[0]["ranks"]).parameter_count()),
        tokens=0 if text is None else text.tokens, examples=0 if text is None else text.examples,
        labels=0 if text is None else text.labels,
        matrices=tuple(MatrixRank(**matrix) for part in work.parts for matrix in part.get("matrices", ())),
        seconds=took[0], peak_memory=took[1],
    )  # fmt: skip


class _Job:
    """One model on its way. Raises what `factorize` does, before any block is read where that can be."""

    def __init__(
        self, files: WeightFiles, folder: Path, settings: FactorizeConfig, memory: int | None, say: Say | None
    ):
        self.files, self.settings, self.folder, self.say = files, settings, folder, say
        config = files.config
        self.chosen = None if settings.dtype == "auto" else resolve_dtype(settings.dtype)
        self.stored = self.chosen or files.places["embedding.weight"].info.dtype
        _check_kinds(config, str(folder))
        self.shapes = config.named_matrices()
        self.budget = self._budget()
        if memory is not None:
            first_use(training=False)
        self.text: Calibration | None = None
        self.tokenizer: Tokenizer | None = None
        if settings.calibrate is not None or (folder / "tokenizer.json").is_file():
            self.tokenizer = Tokenizer.load(folder)
            check_rows(self.tokenizer, config, folder)
        settle = functools.partial(self._settle, memory)
        if settings.calibrate is None:
            settle()
        else:
            assert self.tokenizer is not None
            self.text = read_calibration(settings, self.tokenizer, config.context, say, settle)
        self.plain: Decoder = build(config, device="meta")
        if say is not None:
            self._tell(say, memory)
        keep_to(self.room, memory)

    def _settle(self, memory: int | None) -> int:
        """How there is room, with the text in the process; -> tokens in a batch."""
        self.room: Room = make_room(self.files.config, self.settings, process_bytes(), memory)
        return self.room.tokens

    def made_of(self) -> dict[str, Any]:
        """All that decides what is written."""
        return {
            "verb": "factorize",
            "weights": Fingerprint.of([file.path for file in self.files.files]).digest,
            "config": self.files.config.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "text": None if self.text is None else self.text.digest(),
            "threads": torch.get_num_threads(),
        }

    def factors_config(self, ranks: Ranks) -> ModelConfig:
        """The model's, with the ranks that were chosen."""
        linear: LowRankConfig | FactorizedConfig
        if self.settings.rank is not None:
            linear = LowRankConfig(rank=self.settings.rank)
        else:
            rows = tuple(tuple(block.get(name, 0) for name in LINEARS) for block in ranks)
            linear = FactorizedConfig(names=LINEARS, ranks=rows)
        return ModelConfig.model_validate({**self.files.config.model_dump(), "linear": linear.model_dump()})

    def run(self, work: Unfinished) -> tuple[float, float]:
        """All parts that are not there yet; -> nats on the held-out text before and after."""
        if not matmul.TABLE.adopt(work.libraries) and work.parts and self.say is not None:
            self.say(matmul.OTHER_MACHINE)
        if not work.parts:
            ranks = self._ranks(work)
            work.add(copied(self.files.places, family_of(self._written_config(ranks)), self._dtype), ranks=ranks)
        text = self.text
        self.made = self._written_config(work.parts[0]["ranks"])
        self.family = family_of(self.made)
        return change_blocks(
            self.files, work, self.family, [] if text is None else text.calibrating,
            [] if text is None else text.measured, change=functools.partial(self._factorize, work),
            read_again=functools.partial(self._read_again, work), kept=hidden_states(self.room, work.scratch),
            what="factorize matrices", linears=len(LINEARS),
        )  # fmt: skip

    def finish(self, work: Unfinished, folder: Path) -> int:
        """The folder of all parts; -> bytes of its weights."""
        write_configs(folder, self.made, self.stored, read_generation_config(self.folder))
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        with work.all() as parts:
            return join(parts, folder)

    # --- ranks -----------------------------------------------------------------------------------------------

    def _budget(self) -> int:
        """Parameters that the matrices of the blocks may have. Raises ConfigError for one that cannot be met."""
        config, settings = self.files.config, self.settings
        total = config.parameter_count()
        blocks = config.layers * sum(inputs * outputs for inputs, outputs in self.shapes.values())
        if settings.rank is not None:
            if all(LowRankConfig(rank=settings.rank).rank_of(*shape) is None for shape in self.shapes.values()):
                most = max((i * o - 1) // (i + o) for i, o in self.shapes.values())
                raise ConfigError(
                    f"factors of rank {settings.rank:,} make no matrix of this model smaller",
                    hint=f"the largest rank that does is {most:,}",
                )
            return blocks
        assert settings.parameters is not None
        wanted = target(settings.parameters, total)
        if wanted >= total:
            raise ConfigError(
                f"the model has {format_count(total)} parameters, no more than the {format_count(wanted)} asked for",
                hint="give fewer, or a part of them as 0.7x",
            )
        least = config.layers * sum(min(i * o, i + o) for i, o in self.shapes.values())
        rest = total - blocks
        if wanted - rest < least:
            raise ConfigError(
                f"{format_count(wanted)} parameters cannot be reached: embedding, head and norms have"
                f" {format_count(rest)}, which stay, and factors of rank 1 {format_count(least)}",
                hint=f"{math.ceil((rest + least) / total * 100) / 100:.2f}x is about the least",
            )
        return wanted - rest

    def _ranks(self, work: Unfinished) -> Ranks:
        """For each block the ranks of the matrices that become factors."""
        config, rank = self.files.config, self.settings.rank
        if rank is not None:
            usual = LowRankConfig(rank=rank)
            row = {name: rank for name, shape in self.shapes.items() if usual.rank_of(*shape) is not None}
            return [dict(row) for _ in range(config.layers)]
        found: dict[str, Matrix] = {}
        batches, kept = [] if self.text is None else self.text.calibrating, hidden_states(self.room, work.scratch)
        weights: dict[str, float] = {}
        if batches:
            with waiting("look at  what the loss feels, in blocks", 2 * config.layers) as told:
                weights = loss_weights(self.files, batches, kept, told.advance)
        felt = any(weights.values())  # else as without text
        passages = begin(batches, self.plain, self.files.places, kept)
        with waiting("look at  matrices", len(LINEARS) * config.layers) as told:
            for index in range(config.layers):
                block = read_block(self.files, index)
                of_block = {name: weights[f"{index}.{name}"] for name in LINEARS} if felt else None
                for name, matrix in look(block, passages, self.text is not None, of_block, told.advance).items():
                    found[f"{index}.{name}"] = matrix
                if index < config.layers - 1:
                    pass_through(block, passages)
        ranks = choose(found, self.budget, FLOOR if felt else 0.0)
        return [
            {name: ranks[f"{index}.{name}"] for name in LINEARS if ranks[f"{index}.{name}"]}
            for index in range(config.layers)
        ]

    def _written_config(self, ranks: Ranks) -> ModelConfig:
        return self.files.config if self.settings.dense else self.factors_config(ranks)

    # --- parts -----------------------------------------------------------------------------------------------

    def _factorize(
        self, work: Unfinished, block: nn.Module, index: int, passages: list[Passage], _: list[Passage], done: Any
    ) -> None:
        prefix, ranks = f"blocks.{index}.", work.parts[0]["ranks"][index]

        def kept(name: str, tensor: Tensor) -> Tensor:
            return rounded_to(prefix + name, tensor.detach(), self._dtype(prefix + name)).float()

        round_small(block, kept)
        found = factorize_block(block, passages, self.text is not None, ranks, kept, done)
        if self.settings.dense:
            _multiply_out(block, kept)
        tensors = []
        for name, parameter in block.named_parameters():
            kept_as = rounded_to(prefix + name, parameter.detach(), self._kept(index, name))
            tensors.append(_whole(self.family.tensor_name(prefix + name), kept_as))
        work.libraries = matmul.TABLE.choices()
        work.add(tensors, matrices=[asdict(self._told(prefix, name, fitted)) for name, fitted in found.items()])

    def _told(self, prefix: str, name: str, fitted: Fitted) -> MatrixRank:
        whole = fitted.whole or 1.0
        full = min(self.shapes[name])
        return MatrixRank(prefix + name, fitted.rank, full, fitted.error / whole, fitted.plain / whole)

    def _read_again(self, work: Unfinished, index: int) -> nn.Module:
        """A block as an earlier run left it."""
        with torch.device("meta"):
            block = build_block(self.made, index)
        allocate(block, "cpu")
        with work.open(index + 1) as file:
            for name, parameter in block.named_parameters():
                file.read_into(self.family.tensor_name(f"blocks.{index}.{name}"), parameter)
        return block.requires_grad_(False).eval()

    def _kept(self, index: int, name: str) -> torch.dtype:
        """Of a parameter of a block, a factor's as its matrix has it."""
        for factor in (".first.weight", ".second.weight"):
            name = name.replace(factor, ".weight")
        return self._dtype(f"blocks.{index}.{name.replace('.second.bias', '.bias')}")

    def _dtype(self, name: str) -> torch.dtype:
        return self.chosen or self.files.places[name].info.dtype

    def _tell(self, say: Say, memory: int | None) -> None:
        settings, config, text = self.settings, self.files.config, self.text
        total = config.parameter_count()
        if settings.rank is not None:
            size = f"rank {settings.rank:,}"
        else:
            wanted = target(str(settings.parameters), total)
            size = f"{format_count(wanted)} parameters in all, of {format_count(total)}"
        say(f"factorize {len(LINEARS) * config.layers} matrices to {size}")
        if memory is not None:
            say(self.room.told(memory, text is not None))
        if text is None:
            return
        kind = "window" if text.form == "text" else "example"
        say(f"calibrate {counted(text.tokens, 'token')} in {counted(text.examples, kind)} of {text.source}")
        widest = max(inputs for inputs, _ in self.shapes.values())
        if text.tokens < widest:
            say(f"          that is little: fewer than the {widest:,} inputs of a matrix")
        say(f"measure   {counted(text.labels, 'token')} of other {kind}s")


def _check_kinds(config: ModelConfig, where: str) -> None:
    """Raises ModelFileError for what is not factorized here."""
    if not isinstance(config.linear, DenseConfig):
        raise ModelFileError(
            "the matrices of this model are factors already", where,
            f"multiply them out first: shoestring merge {where}",
        )  # fmt: skip
    if dense_parts(config) is None:
        raise ModelFileError(
            "only models with grouped-query attention, SwiGLU and rotary positions in every layer can be factorized",
            where, "Llama, Qwen2 and Qwen3 are such models",
        )  # fmt: skip


def _multiply_out(block: nn.Module, kept: Kept) -> None:
    """Dense linears in place of factors."""
    for name in LINEARS:
        linear = block.get_submodule(name)
        if isinstance(linear, LowRankLinear):
            dense = linear.to_linear().requires_grad_(False)
            dense.weight.copy_(kept(f"{name}.weight", dense.weight))
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, dense)


def _whole(name: str, tensor: Tensor) -> Streamed:
    return Streamed(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])
