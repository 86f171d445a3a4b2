"""`quantize`: a model folder in, the same model with the matrices of its blocks in few bits out.

Block after block is read, quantized and written; in memory are one block in float32, the second moments of one linear's
inputs, and the hidden states of the text: that which calibrates, and that which measures, once behind the dense blocks
and once behind the quantized ones. Embedding, head and norms stay as they are. The folder is of the form that the
compressed-tensors library has (`models.packed_files`).
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoestring.compression.blocks import (
    LINEARS,
    Passage,
    check_finite,
    check_model,
    pass_through,
    quantize_block,
    read_block,
)
from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.config import Method, QuantizeConfig, quantize_config
from shoestring.compression.gptq import Rounded
from shoestring.compression.result import MatrixError, Measured, Quantized, write_report
from shoestring.compression.shards import ShardWriter
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_folder
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.units import counted
from shoestring.core.waiting import waiting
from shoestring.data.batch import Batch
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import allocate, build
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Family
from shoestring.models.families.registry import family_of
from shoestring.models.folder import check_rows, read_generation_config, rounded_to, write_configs
from shoestring.models.packed_files import packed_linears, packed_tensors
from shoestring.models.peft_folder import is_adapter
from shoestring.models.resolve import Say, find_model
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.context import make_context
from shoestring.nn.quantized.config import PackedConfig
from shoestring.offload.ends import DiskEmbedding, StreamedHead
from shoestring.offload.stream import placeholder
from shoestring.train.objective import next_token


def quantize(
    model: str | Path,
    out: str | Path,
    bits: Literal[3, 4, 8] = 4,
    group: int = 32,
    method: Method = "gptq",
    calibrate: str | Path | None = None,
    symmetric: bool = True,
    activations: Literal["int8"] | None = None,
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    damping: float | None = None,
    seed: int | None = None,
    dtype: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    say: Say | None = None,
) -> Quantized:
    """Write a copy of `model` whose linears have weights of few bits into the new folder `out`.

    bits: 3, 4 or 8. group: inputs that share a scale; 0 is a whole row. method: "gptq" rounds by the text of
    `calibrate` (any source of text or examples), "rtn" to nearest. activations: "int8" for 8-bit inputs too, with bits
    8 and group 0. The others are those of `compression.config.QuantizeConfig`. Where there is text, the loss on a part
    of it that is not calibrated with is measured before and after. Raises ConfigError, DataError, ModelFileError, and
    RunError where the folder exists.
    """
    given: dict[str, Any] = {
        "bits": bits, "group": group, "method": method, "calibrate": None if calibrate is None else str(calibrate),
        "symmetric": symmetric, "activations": activations, "rows": rows, "context": context, "held_out": held_out,
        "damping": damping, "seed": seed, "dtype": dtype, "columns": columns, "on_bad_line": on_bad_line,
    }  # fmt: skip
    settings = quantize_config(given)
    allocator.install()
    started = time.perf_counter()
    folder = find_model(model, say=say)
    if is_adapter(folder):
        raise ConfigError(
            f"{model} is an adapter, and has no weights of its own to quantize",
            hint=f"fold it into its base first: shoestring merge {model}",
        )
    with atomic_folder(out) as temporary, WeightFiles(folder) as files, torch.no_grad():
        job = _Job(files, folder, settings, temporary, say)
        matrices, losses = job.run()
        text = job.text
        before = sum(place.info.elements * place.info.dtype.itemsize for place in files.places.values())
        result = Quantized(
            folder=Path(out), model=str(model), settings=settings.model_dump(mode="json"),
            before=_measured(before, losses[0], text), after=_measured(job.shards.total, losses[1], text),
            packed_bytes=job.packed_bytes, dense_dtype=str(job.dense).removeprefix("torch."),
            tokens=text.tokens if text is not None and method == "gptq" else 0,
            examples=text.examples if text is not None and method == "gptq" else 0,
            labels=0 if text is None else text.labels, matrices=tuple(matrices),
            seconds=time.perf_counter() - started, peak_memory=peak_rss_bytes(),
        )  # fmt: skip
        write_report(result, temporary)
    return result


def _measured(weight_bytes: int, nats: float, text: Calibration | None) -> Measured:
    if text is None:
        return Measured(weight_bytes, None, None)
    bits = nats / math.log(2) / text.label_bytes if text.label_bytes else None
    return Measured(weight_bytes, nats / max(text.labels, 1), bits)


class _Job:
    """One model on its way. Raises what `quantize` does, before any block is read where that can be."""

    def __init__(self, files: WeightFiles, folder: Path, settings: QuantizeConfig, out: Path, say: Say | None):
        self.files, self.settings, self.out = files, settings, out
        config = files.config
        stored = files.places["embedding.weight"].info.dtype
        self.chosen = None if settings.dtype == "auto" else resolve_dtype(settings.dtype)
        self.dense = self.chosen or stored
        self.packed: PackedConfig = settings.packed("float16" if self.dense == torch.float16 else "bfloat16")
        check_model(config, self.packed, str(folder))
        self.text: Calibration | None = None
        tokenizer = None
        if settings.calibrate is not None or (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.load(folder)
            check_rows(tokenizer, config, folder)
        if settings.calibrate is not None:
            assert tokenizer is not None
            self.text = read_calibration(settings, tokenizer, config.context, say)
        self.family: Family = family_of(config)
        self.plain: Decoder = build(config, device="meta")
        self.shards = ShardWriter(out)
        self.packed_bytes = 0
        write_configs(out, config, self.dense, read_generation_config(folder), self.packed)
        if tokenizer is not None:
            tokenizer.save(out)
        if say is not None:
            self._tell(say)

    def _tell(self, say: Say) -> None:
        settings, config, text = self.settings, self.files.config, self.text
        each = f"groups of {settings.group}" if settings.group else "whole rows"
        say(f"quantize  {len(LINEARS) * config.layers} matrices to {settings.bits} bits in {each}, {settings.method}")
        if text is None:
            return
        kind = "window" if text.form == "text" else "example"
        if settings.method == "gptq":
            say(f"calibrate {counted(text.tokens, 'token')} in {counted(text.examples, kind)} of {text.source}")
            linears = [linear for linear in self.plain.blocks[0].modules() if isinstance(linear, nn.Linear)]
            widest = max(linear.in_features for linear in linears)
            if text.tokens < widest:
                say(f"          that is little: fewer than the {widest:,} inputs of a matrix")
        say(f"measure   {counted(text.labels, 'token')} of other {kind}s")

    def run(self) -> tuple[list[MatrixError], tuple[float, float]]:
        """-> the error of each matrix, and nats on the held-out text before and after."""
        files, settings = self.files, self.settings
        self._write_ends()
        calibrating = settings.method == "gptq" and self.text is not None
        with contextlib.closing(self._embedding()) as embedding:
            batches = self.text.calibrating if self.text is not None and calibrating else []
            passages = self._begin(embedding, batches)
            measured = self._begin(embedding, self.text.measured if self.text is not None else [])
        afterwards = [Passage(passage.batch, passage.context, passage.hidden_BTD) for passage in measured]
        matrices: list[MatrixError] = []
        layers = files.config.layers
        with waiting("quantize  matrices", len(LINEARS) * layers) as told:
            for index in range(layers):
                block = read_block(files, index)
                pass_through(block, measured)
                found = quantize_block(
                    block, passages, self.packed, settings.method, settings.damping, lambda: told.advance()
                )
                if index < layers - 1:
                    pass_through(block, passages)
                pass_through(block, afterwards)
                matrices += [_error(f"blocks.{index}.{name}", rounded) for name, rounded in found.items()]
                del found
                self._write_block(block, index)
        self.shards.finish()
        return matrices, self._losses(measured, afterwards)

    def _begin(self, embedding: DiskEmbedding, batches: list[Batch]) -> list[Passage]:
        """Each batch as the first block takes it."""
        return [
            Passage(
                batch,
                make_context(batch.tokens_BT, self.plain.rotary, batch.positions_BT, batch.segments_BT),
                embedding(batch.tokens_BT),
            )
            for batch in batches
        ]

    def _embedding(self) -> DiskEmbedding:
        return DiskEmbedding(self._placeholder(), self.files.places["embedding.weight"])

    def _placeholder(self) -> nn.Parameter:
        shape = (self.files.config.vocabulary, self.files.config.width)
        return nn.Parameter(placeholder(shape, torch.float32), requires_grad=False)

    def _losses(self, before: list[Passage], after: list[Passage]) -> tuple[float, float]:
        if not before:
            return 0.0, 0.0
        config, places = self.files.config, self.files.places
        norm = self.plain.norm
        allocate(norm, "cpu")
        places["norm.weight"].file.read_into(places["norm.weight"].tensor, norm.get_parameter("weight"))
        place = places["embedding.weight" if config.tied_head else "head.weight"]
        head = StreamedHead(self._placeholder(), place, config.logit_softcap)
        with contextlib.closing(head.source):
            sums = [
                sum(float(next_token(norm(passage.hidden_BTD), head, passage.batch).sum) for passage in passages)
                for passages in (before, after)
            ]
        return sums[0], sums[1]

    def _write_ends(self) -> None:
        for name, place in self.files.places.items():
            if not name.startswith("blocks."):
                tensor = place.file.read(place.tensor)
                check_finite(tensor, place)
                self.shards.add(dict([self._kept(name, tensor)]))

    def _write_block(self, block: nn.Module, index: int) -> None:
        prefix = f"blocks.{index}."
        tensors = dict(self._kept(prefix + name, parameter) for name, parameter in block.named_parameters())
        for name, linear in packed_linears(block).items():
            module = self.family.tensor_name(f"{prefix}{name}.weight").removesuffix(".weight")
            for key, tensor in packed_tensors(linear, module).items():
                if key.endswith(".bias"):
                    key, tensor = self._kept(f"{prefix}{name}.bias", tensor)
                else:
                    self.packed_bytes += tensor.numel() * tensor.dtype.itemsize
                tensors[key] = tensor
        self.shards.add(tensors)

    def _kept(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """What is not quantized: its name in the folder, and its numbers as they are kept."""
        dtype = self.chosen or self.files.places[name].info.dtype
        return self.family.tensor_name(name), rounded_to(name, tensor.detach(), dtype)


def _error(name: str, rounded: Rounded) -> MatrixError:
    whole = rounded.whole or 1.0
    return MatrixError(name, rounded.error / whole, rounded.nearest / whole)

