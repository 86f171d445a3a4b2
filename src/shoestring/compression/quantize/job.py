"""`quantize`: a model folder in, the same model with the matrices of its blocks in few bits out.

Block after block is read, quantized and written beside the folder that will be (`compression.unfinished`), so that a
run that was stopped goes on behind the last whole block, with the same bytes in the end. In memory are one block in
float32, the second moments of one linear's inputs, and the hidden states of the text, or these on disk: those of
what calibrates and of what measures, each once behind the dense blocks and once behind the quantized ones. Norms stay
as they are, and so do embedding and head that are not to be in 8 bits. The folder is of the form that the
compressed-tensors library has (`models.packed_files`, `models.rounded_rows`).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.decoding import decode_both
from shoestring.compression.ends import copied, measured_on
from shoestring.compression.passage import Passage
from shoestring.compression.quantize.blocks import check_model, quantize_block
from shoestring.compression.quantize.config import LINEARS, Method, Part, QuantizeConfig, quantize_config, told
from shoestring.compression.quantize.gptq import Rounded
from shoestring.compression.quantize.memory import make_room, predict_room, rounding
from shoestring.compression.quantize.result import MatrixError, Quantized
from shoestring.compression.report import Decoding, write_report
from shoestring.compression.room import Room, hidden_states, keep_to, process_bytes, refusals_told
from shoestring.compression.tensor_stream import Streamed, join
from shoestring.compression.unfinished import Unfinished, unfinished
from shoestring.compression.walk import change_blocks
from shoestring.core import matmul
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.core.files import atomic_folder, check_new
from shoestring.core.machine import peak_rss_bytes
from shoestring.core.speeds import FEW, matrix_peak, memory_bandwidth
from shoestring.core.units import counted, format_seconds, parse_bytes
from shoestring.data.batch import Batch
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import allocate, build, build_block
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Family
from shoestring.models.families.registry import family_of
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.folder import check_rows, read_generation_config, rounded_to, write_configs
from shoestring.models.packed_files import fill_packed, packed_linears, packed_tensors, put_packed, take_packed
from shoestring.models.peft_folder import is_adapter
from shoestring.models.place import Place
from shoestring.models.quantization import Scheme
from shoestring.models.resolve import Say, find_model
from shoestring.models.rounded_rows import ENDS, SCALE
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.quantized.config import PackedConfig
from shoestring.plan.calibration import corrections_of
from shoestring.plan.receipt import Item, Receipt, keep, memory_items, receipt_of
from shoestring.plan.shapes import Machine, Prediction
from shoestring.train.first_use import first_use


def quantize(
    model: str | Path,
    out: str | Path,
    bits: Literal[3, 4, 8] = 4,
    group: int = 32,
    method: Method = "gptq",
    calibrate: str | Path | None = None,
    wide: Sequence[Part] = (),
    symmetric: bool = True,
    activations: Literal["int8"] | None = None,
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    read: int | None = None,
    steps: int | None = None,
    damping: float | None = None,
    seed: int | None = None,
    dtype: str = "auto",
    embedding: Literal[8] | None = None,
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    memory: str | int | None = None,
    say: Say | None = None,
) -> Quantized:
    """Write a copy of `model` whose linears have weights of few bits into the new folder `out`.

    bits: 3, 4 or 8. wide: linears of each block that are kept in 8 bits all the same, of query, key, value, output,
    gate, up and down. group: inputs that share a scale; 0 is a whole row. method: "rtn" rounds to nearest; by the text
    of `calibrate` (any source of text or examples) round "gptq", "awq" and "learned". activations: "int8" for 8-bit
    inputs too, with bits 8 and group 0. embedding: 8 keeps embedding and head in 8 bits, a scale for each row, else
    they stay as they are. memory: bytes ("3GB") of the whole process at most. The others are those of
    `compression.config.QuantizeConfig`. Where there is text, the loss on a part of it that is not calibrated with is
    measured before and after. A run that was stopped goes on where it was if it is asked for the same. Raises
    ConfigError, DataError, ModelFileError, BudgetError, and RunError where the folder exists.
    """
    given: dict[str, Any] = {
        "bits": bits, "group": group, "method": method, "calibrate": None if calibrate is None else str(calibrate),
        "wide": tuple(wide),
        "symmetric": symmetric, "activations": activations, "rows": rows, "context": context, "held_out": held_out,
        "read": read, "steps": steps, "damping": damping, "seed": seed, "dtype": dtype, "columns": columns,
        "on_bad_line": on_bad_line, "embedding": embedding,
    }  # fmt: skip
    settings = quantize_config(given)
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    check_new(out)
    allocator.install()
    started = time.perf_counter()
    folder = find_model(model, say=say)
    if is_adapter(folder):
        raise ConfigError(
            f"{model} is an adapter, and has no weights of its own to quantize",
            hint=f"fold it into its base first: shoestring merge {model}",
        )
    with refusals_told("quantizing"), WeightFiles(folder) as files, torch.no_grad():
        job = _Job(files, folder, settings, budget, say)
        with unfinished(Path(out), job.made_of(), say) as work:
            losses = job.run(work)
            with atomic_folder(out) as temporary:
                weight_bytes = job.finish(work, temporary)
                took = time.perf_counter() - started, peak_rss_bytes()
                receipt = job.receipt(took[1])
                speeds = decode_both(folder, temporary, files.config, budget)
                result = _result(job, work, Path(out), str(model), losses, weight_bytes, speeds, took, receipt)
                write_report(result.report(), temporary)
    return result


def _result(
    job: _Job, work: Unfinished, out: Path, model: str, losses: tuple[float, float], weight_bytes: int,
    speeds: tuple[Decoding | None, Decoding | None], took: tuple[float, int], receipt: Receipt,
) -> Quantized:  # fmt: skip
    settings, text = job.settings, job.text
    by_text = text is not None and settings.method != "rtn"
    stored = sum(place.info.elements * place.info.dtype.itemsize for place in job.files.places.values())
    return Quantized(
        folder=out, model=model, settings=settings.model_dump(mode="json"),
        before=measured_on(text, stored, losses[0], speeds[0]),
        after=measured_on(text, weight_bytes, losses[1], speeds[1]),
        packed_bytes=sum(part.get("packed", 0) for part in work.parts),
        dense_dtype=str(job.dense).removeprefix("torch."),
        tokens=text.tokens if text is not None and by_text else 0,
        examples=text.examples if text is not None and by_text else 0, labels=0 if text is None else text.labels,
        matrices=tuple(MatrixError(**matrix) for part in work.parts for matrix in part.get("matrices", ())),
        seconds=took[0], peak_memory=took[1], receipt=receipt,
    )  # fmt: skip


class _Job:
    """One model on its way. Raises what `quantize` does, before any block is read where that can be."""

    def __init__(
        self, files: WeightFiles, folder: Path, settings: QuantizeConfig, memory: int | None, say: Say | None
    ):
        self.files, self.settings, self.folder, self.say = files, settings, folder, say
        self.seconds: list[float] = []  # of each block
        config = files.config
        stored = files.places["embedding.weight"].info.dtype
        self.chosen = None if settings.dtype == "auto" else resolve_dtype(settings.dtype)
        self.dense = self.chosen or stored
        self.packed: PackedConfig = settings.packed("float16" if self.dense == torch.float16 else "bfloat16")
        check_model(config, self.packed, str(folder))
        if memory is not None:
            first_use(training=settings.method == "learned")
        speeds = matrix_peak(), memory_bandwidth(count=FEW)
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
        threads = torch.get_num_threads()
        corrections = corrections_of("quantize", threads)
        self.machine = Machine(self.process, speeds[0], threads=threads, bandwidth=speeds[1], corrections=corrections)
        self.before = peak_rss_bytes()
        allocator.reset_peaks()
        self.family: Family = family_of(config)
        self.plain: Decoder = build(config, device="meta")
        if say is not None:
            self._tell(say, memory)
        keep_to(self.room, memory)

    def _settle(self, memory: int | None) -> int:
        """How there is room, with the text in the process; -> tokens in a batch."""
        self.process = process_bytes()
        self.room: Room = make_room(self.files.config, self.settings, self.process, memory)
        return self.room.tokens

    def made_of(self) -> dict[str, Any]:
        """All that decides what is written."""
        return {
            "weights": Fingerprint.of([file.path for file in self.files.files]).digest,
            "config": self.files.config.model_dump(mode="json"),
            "settings": self.settings.model_dump(mode="json"),
            "text": None if self.text is None else self.text.digest(),
            "threads": torch.get_num_threads(),
        }

    def _tell(self, say: Say, memory: int | None) -> None:
        settings, config, text = self.settings, self.files.config, self.text
        bits = told(settings.bits, settings.group, settings.wide, settings.embedding)
        say(f"quantize  {len(LINEARS) * config.layers} matrices to {bits}, {settings.method}")
        if memory is not None:
            say(self.room.told(memory, text is not None))
        found = self.prediction()
        corrected = "" if found.correction is None else f"; {found.correction}"
        say(f"time      about {format_seconds(found.seconds * config.layers)} for the blocks predicted{corrected}")
        if text is None:
            return
        kind = "window" if text.form == "text" else "example"
        if settings.method != "rtn":
            say(f"calibrate {counted(text.tokens, 'token')} in {counted(text.examples, kind)} of {text.source}")
            linears = [linear for linear in self.plain.blocks[0].modules() if isinstance(linear, nn.Linear)]
            widest = max(linear.in_features for linear in linears)
            if text.tokens < widest:
                say(f"          that is little: fewer than the {widest:,} inputs of a matrix")
        say(f"measure   {counted(text.labels, 'token')} of other {kind}s")

    def run(self, work: Unfinished) -> tuple[float, float]:
        """All parts that are not there yet; -> nats on the held-out text before and after."""
        if not matmul.TABLE.adopt(work.libraries) and work.parts and self.say is not None:
            self.say(matmul.OTHER_MACHINE)
        if not work.parts:
            rounded = None if self.settings.embedding is None else getattr(torch, self.packed.scale)
            ends = copied(self.files.places, self.family, self._dtype, rounded)
            work.add(ends, packed=sum(end.bytes for end in ends if end.dtype == torch.int8 or end.name.endswith(SCALE)))
        text, by_text = self.text, self.settings.method != "rtn"
        return change_blocks(
            self.files, work, self.family, text.calibrating if text is not None and by_text else [],
            [] if text is None else text.measured, change=functools.partial(self._quantize, work),
            read_again=functools.partial(self._read_again, work), kept=hidden_states(self.room, work.scratch),
            what="quantize  matrices", linears=len(LINEARS), beside=self.settings.follows, seconds=self.seconds,
        )  # fmt: skip

    def finish(self, work: Unfinished, folder: Path) -> int:
        """The folder of all parts; -> bytes of its weights."""
        generation = read_generation_config(self.folder)
        ends = [end for end in ENDS if f"{end}.weight" in self.files.places]
        rounded = () if self.settings.embedding is None else ends
        write_configs(folder, self.files.config, self.dense, generation, self.packed, self._others(), rounded)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        with work.all() as parts:
            return join(parts, folder)

    def _others(self) -> dict[PackedConfig, list[str]]:
        """Linears that are not kept as most are."""
        found: dict[PackedConfig, list[str]] = {}
        for name, config in self.settings.each(self.packed).items():
            if config != self.packed:
                blocks = range(self.files.config.layers)
                found.setdefault(config, []).extend(f"blocks.{index}.{name}" for index in blocks)
        return found

    def prediction(self) -> Prediction:
        """Of a block."""
        config, text = self.files.config, self.text
        calibrating, measured = (0, 0) if text is None else map(_tokens, (text.calibrating, text.measured))
        job = rounding(config, self.settings, self.room, calibrating, measured)
        source = self.files.places["embedding.weight"].info.dtype.itemsize
        return predict_room(config, self.room, job, self.machine, self.packed, source)

    def receipt(self, peak: int) -> Receipt:
        """Of what is done; kept in the log of this machine too. peak: of the process."""
        counts = allocator.counts()
        tensors = None if counts is None else counts.live_peak
        measured = peak if peak > self.before else None
        found = self.prediction()
        seconds = statistics.median(self.seconds) if self.seconds else None
        items = [*memory_items(found, measured, tensors, {})]
        items += [Item(name, "seconds", each) for name, each in found.time]
        items.append(Item("a block", "seconds", found.seconds, seconds))
        items.append(Item("all blocks", "seconds", found.seconds * len(self.seconds) or None, sum(self.seconds)))
        receipt = receipt_of(
            found, "quantize", self.settings.method, torch.get_num_threads(), peak=measured, tensors=tensors,
            seconds=seconds, count=len(self.seconds), items=items, unit="block",
        )  # fmt: skip
        if (refused := keep(receipt, None)) and self.say is not None:
            self.say(f"receipt   not kept: {refused}")
        return receipt

    # --- parts -----------------------------------------------------------------------------------------------

    def _quantize(
        self, work: Unfinished, block: nn.Module, index: int, passages: list[Passage], own: list[Passage], done: Any
    ) -> None:
        prefix = f"blocks.{index}."

        def kept(name: str, tensor: Tensor) -> Tensor:
            return self._rounded(prefix + name, tensor).float()

        found = quantize_block(block, passages, self.packed, self.settings, kept, done, own)
        tensors = {
            self.family.tensor_name(prefix + name): self._rounded(prefix + name, parameter)
            for name, parameter in block.named_parameters()
        }
        packed = 0
        for name, linear in packed_linears(block).items():
            module = self.family.tensor_name(f"{prefix}{name}.weight").removesuffix(".weight")
            for key, tensor in packed_tensors(linear, module).items():
                if key.endswith(".bias"):
                    key = self.family.tensor_name(f"{prefix}{name}.bias")
                    tensor = self._rounded(f"{prefix}{name}.bias", tensor)
                else:
                    packed += tensor.numel() * tensor.dtype.itemsize
                tensors[key] = tensor
        errors = [asdict(_error(prefix + name, rounded)) for name, rounded in found.items()]
        work.libraries = matmul.TABLE.choices()
        work.add([_whole(name, tensor) for name, tensor in tensors.items()], matrices=errors, packed=packed)

    def _read_again(self, work: Unfinished, index: int) -> nn.Module:
        """A block as an earlier run left it."""
        prefix = f"blocks.{index}."
        with torch.device("meta"):
            block = build_block(self.files.config, index)
        parameters: dict[str, Tensor] = {prefix + name: parameter for name, parameter in block.named_parameters()}
        with work.open(index + 1) as file:
            where = {name: Place("", file, name) for name in file.infos}
            scheme = Scheme("compressed-tensors", self.packed, tuple(self._others()))
            places = take_packed(scheme, parameters, self.family, where)
            put_packed(block, {name.removeprefix(prefix): place for name, place in places.items()})
            allocate(block, "cpu")
            for name, parameter in block.named_parameters():
                file.read_into(self.family.tensor_name(prefix + name), parameter)
            for name, linear in packed_linears(block).items():
                fill_packed(linear, places[prefix + name], where.get(self.family.tensor_name(f"{prefix}{name}.bias")))
        return block.requires_grad_(False).eval()

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        """What is not quantized, in the numbers that it is kept in."""
        return rounded_to(name, tensor.detach(), self._dtype(name))

    def _dtype(self, name: str) -> torch.dtype:
        return self.chosen or self.files.places[name].info.dtype


def _tokens(batches: list[Batch]) -> int:
    """Padding included."""
    return sum(batch.tokens_BT.numel() for batch in batches)


def _whole(name: str, tensor: Tensor) -> Streamed:
    return Streamed(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])


def _error(name: str, rounded: Rounded) -> MatrixError:
    whole = rounded.whole or 1.0
    return MatrixError(name, rounded.error / whole, rounded.nearest / whole)
