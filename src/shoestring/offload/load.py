"""`shoestring.load(MODEL, memory="2GB")`: a model to decode with, streamed from disk where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from shoestring.core.device import check_memory_budget, resolve_device, resolve_dtype
from shoestring.core.errors import BudgetError
from shoestring.core.machine import peak_rss_bytes, rss_bytes, total_memory_bytes
from shoestring.core.speeds import file_read_speed, matrix_peak
from shoestring.core.units import format_bytes, parse_bytes
from shoestring.data.tokenizer import Tokenizer
from shoestring.generate.language_model import LanguageModel
from shoestring.kernels import allocator
from shoestring.models.config import ModelConfig
from shoestring.models.decoding_formats import CacheFormat, DecodingFormat, check_cache
from shoestring.models.external import open_external
from shoestring.models.folder import read_generation_config
from shoestring.models.peft_folder import find_base, is_adapter, load_adapter
from shoestring.models.resolve import find_model
from shoestring.models.weight_files import WeightFiles, weight_paths
from shoestring.offload.config import StoreFormat, store_format
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.offload.packed_layers import block_linears
from shoestring.plan.calibration import corrections_of
from shoestring.plan.constants import SPARE
from shoestring.plan.decoding import Loaded, Use, predict_use
from shoestring.plan.shapes import Machine, Packed, WeightFormat
from shoestring.train.first_use import first_use
from shoestring.train.planning import memory_speed

_READ = 32_000_000  # bytes that measure a disk
_TOKENS = 1024  # of the cache, and computed together, for which room is kept


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: str | int | None = None,
    weights: StoreFormat | DecodingFormat = "source",
    say: Callable[[str], Any] | None = None,
    scoring: bool = False,
    cache: CacheFormat = "source",
) -> LanguageModel:
    """`LanguageModel.load`, inside `memory` bytes ("2GB") for the whole process if given.

    A model that fits is in memory, in bfloat16 where it has that and float32 would not fit. Another is read from disk
    layer by layer for every token (`weights`: how it is kept there; with one of its own it is always read from there).
    Without a budget `weights` is that of `LanguageModel.load`. device: with a budget, which is of the process, "auto"
    is the CPU and a GPU is refused. scoring: keep room for `perplexity` too. cache: as there. Raises BudgetError with
    the least that would do, and what `LanguageModel.load` raises.
    """
    allocator.install()
    peak = peak_rss_bytes()
    if memory is None:
        language = LanguageModel.load(model, device, dtype, say, weights=cast(DecodingFormat, weights), cache=cache)
        allocator.give_back()  # what weights were before they were rounded or laid out
        language.loaded = _without_a_budget(language)
        return language
    check_cache(cache, memory)
    kept = store_format(weights)
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    where = resolve_device(device)
    if device == "auto" and where.type != "cpu":
        where = torch.device("cpu")
        if say is not None:
            say("device    cpu: a memory budget is of the process, and a GPU has a memory of its own")
    check_memory_budget(budget, where)
    folder = find_model(model, say=say)
    base = find_base(folder, say) if is_adapter(folder) else folder
    with WeightFiles(base, packed=True) as files:
        config, packed = files.config, frozenset(block_linears(files).items())
        source = _name(files.dtype_of("embedding.weight"))
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    external = open_external(config, tokenizer, say)  # first: the process is then as large as it stays
    first_use(training=False)
    machine = _machine(scoring, base)
    plain = replace(machine, corrections=())
    for kind in _number_formats(dtype, source) if kept == "source" else ():
        if max(predict_use(config, use, machine, source).total for use in _uses(kind, scoring)) <= budget * SPARE:
            if say is not None and dtype == "auto" and kind != "float32":
                say(f"computing in {kind}, as the weights are: in float32 they would not fit in memory")
            language = LanguageModel.load(model, where, kind, say, external)
            language.at_once = _TOKENS
            language.loaded = Loaded(config, plain, source, kind, promised=True, before=peak)
            return language
    settled = torch.float32 if dtype == "auto" else resolve_dtype(dtype)
    slots = _slots(config, kept, source, budget, machine, _uses(_name(settled), scoring, packed))
    decoder = open_streamed(base, kept, slots, where, settled, say=say)
    if folder != base:
        load_adapter(decoder, folder)
    language = LanguageModel(decoder.eval(), tokenizer, folder, read_generation_config(base), external)
    language.at_once = _TOKENS
    form: WeightFormat = "packed" if packed else kept
    language.loaded = Loaded(
        config, plain, source, _name(settled), form, slots, packed, True, peak
    )
    language.tell_unused(say)
    return language


def _machine(scoring: bool, base: Path) -> Machine:
    """This process, with what runs have said of this machine. Speeds are measured before the model takes its memory."""
    flops, bandwidth, threads = matrix_peak(), memory_speed(), torch.get_num_threads()
    read_speed = file_read_speed(max(weight_paths(base), key=lambda path: path.stat().st_size), _READ)
    job = "perplexity" if scoring else "generate"
    return Machine(
        rss_bytes() - allocator.kept(), flops, read_speed, total=total_memory_bytes(), threads=threads,
        bandwidth=bandwidth, corrections=corrections_of(job, threads),
    )  # fmt: skip


def _without_a_budget(language: LanguageModel) -> Loaded | None:
    """What its time is predicted by, of a model in memory as it computes; of one in few bits nothing is known. The
    machine's speeds are still to be measured."""
    weight = language.decoder.embedding.weight
    if language.weights not in ("source", "float32") or weight.device.type != "cpu":
        return None
    machine = Machine(0, 1.0, total=total_memory_bytes(), threads=torch.get_num_threads())
    return Loaded(language.decoder.config, machine, "float32", _name(weight.dtype))


def _number_formats(dtype: str | torch.dtype, source: str) -> list[str]:
    """What a resident model may be computed in, best first: what is asked for; else float32, then bfloat16 if the files
    have it, which is faster than reading from disk."""
    if dtype != "auto":
        return [_name(resolve_dtype(dtype))]
    return ["float32", "bfloat16"] if source == "bfloat16" else ["float32"]


def _uses(compute: str, scoring: bool, packed: Packed = frozenset()) -> list[Use]:
    """What a model is loaded for."""
    decoding = Use(1, _TOKENS, 1, compute=compute, packed=packed)
    scored = Use(1, _TOKENS, scored=True, documents=True, compute=compute, packed=packed)
    return [decoding, scored] if scoring else [decoding]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _slots(
    config: ModelConfig, weights: StoreFormat, source: str, budget: int, machine: Machine, uses: list[Use]
) -> int:
    """The most layers in memory that fit. Raises BudgetError."""
    form: WeightFormat = "packed" if uses[0].packed else weights
    for slots in range(max(config.unique_layers, 2), 1, -1):
        least = max(predict_use(config, use, machine, source, form, slots).total for use in uses)
        if least <= budget * SPARE:
            return slots
    enough = -(-int(least / SPARE) // 10_000_000) * 10
    raise BudgetError(
        f"{format_bytes(budget)} of memory are too little to decode with this model, layer by layer",
        hint=f"{enough}MB would do" + ("" if form != "source" else ", and less with the weights kept in int4"),
    )


def close(model: LanguageModel) -> None:
    """End the reading threads of a streamed model."""
    if isinstance(model.decoder, StreamedDecoder):
        model.decoder.close()
