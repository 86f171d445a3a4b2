"""`merge`: an adapter and its base in, one model folder out; and factors, with or without an adapter, multiplied out.

A dense base takes an adapter in as it is. One in few bits is rounded again to grids of the same kind, and what that
loses is said; one of factors gets further ranks. `dense` makes whole matrices of either. What the result computes is
measured on the folder that was written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shoestring.compression.calibration import Calibration, read_calibration
from shoestring.compression.ends import measured_on
from shoestring.compression.merge.config import merge_config
from shoestring.compression.merge.fold import check_numbers, fold, multiply_out
from shoestring.compression.merge.result import WHOLE, Merged
from shoestring.compression.report import Measured, write_report
from shoestring.core.device import resolve_dtype
from shoestring.core.errors import ModelFileError, RunError
from shoestring.core.files import atomic_folder
from shoestring.core.waiting import waiting
from shoestring.data.supervised.config import OnBadLine
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import merge as merge_dense
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import read_config, read_quantization
from shoestring.models.folder import (
    check_rows,
    load_model,
    read_generation_config,
    stored_dtypes,
    write_model_files,
)
from shoestring.models.packed_files import configs_of, packed_linears
from shoestring.models.peft_folder import WEIGHTS, find_base, is_adapter, load_adapter, merge_folder
from shoestring.models.resolve import Say, find_model
from shoestring.models.weight_files import WeightFiles
from shoestring.nn.config import DenseConfig
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss


def merge(
    adapter: str | Path,
    out: str | Path | None = None,
    dense: bool = False,
    calibrate: str | Path | None = None,
    dtype: str = "auto",
    rows: int | None = None,
    context: int | None = None,
    held_out: int | None = None,
    seed: int | None = None,
    columns: dict[str, str] | None = None,
    on_bad_line: OnBadLine | None = None,
    say: Say | None = None,
) -> Merged:
    """Fold an adapter into its base and write a model folder, tokenizer included.

    adapter: a PEFT folder or a run; or a model of factors, which are multiplied out. out: a new folder; None is
    ADAPTER-merged, or OUT/merged for a run. dense: whole matrices also where the base has few bits or factors.
    calibrate: text or examples on which base and adapter are measured before, and the folder after. dtype: what is not
    in few bits is rounded to; "auto": as the base's is stored. Raises ConfigError, DataError, ModelFileError where
    there is nothing to merge, RunError when the folder exists.
    """
    given: dict[str, Any] = {
        "dense": dense, "calibrate": None if calibrate is None else str(calibrate), "dtype": dtype, "rows": rows,
        "context": context, "held_out": held_out, "seed": seed, "columns": columns, "on_bad_line": on_bad_line,
    }  # fmt: skip
    settings = merge_config(given)
    folder = find_model(adapter, say=say)
    adapts = is_adapter(folder)
    if not adapts and isinstance(read_config(folder).linear, DenseConfig):
        raise ModelFileError("this is a whole model: there is nothing to merge", str(folder))
    place = Path(out) if out is not None else _place(folder)
    if place.exists():
        raise RunError("this folder exists already", str(place), "choose another --out")
    base = find_base(folder, say) if adapts else folder
    if settings.calibrate is None and read_quantization(base) is None and _is_dense(base):
        merge_folder(folder, place, say, dtype)
        before, after = (Measured(size, None, None) for size in (weight_bytes(base), weight_bytes(place)))
        return Merged(place, str(adapter), WHOLE, settings.model_dump(mode="json"), before, after, 0, ())
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    stored = stored_dtypes(base, packed=True)
    exact = torch.promote_types(stored["embedding.weight"], torch.float32)
    text = None
    if settings.calibrate is not None:
        config = read_config(base)
        check_rows(tokenizer, config, base)
        if config.input_adapter is not None:
            raise ModelFileError("this model takes vectors beside its tokens, and is not measured on text", str(base))
        text = read_calibration(settings, tokenizer, config.context, say)
    decoder = load_model(base, dtype=exact)
    if adapts:
        load_adapter(decoder, folder)
    decoder.eval()
    before = _measured(decoder, text, weight_bytes(base) + (_adapter_bytes(folder) if adapts else 0), "before")
    with torch.no_grad(), waiting("merge     the adapter"):
        if settings.dense or not adapts:
            merge_dense(decoder)
            multiply_out(decoder)
            matrices = []
        else:
            matrices = fold(decoder)
        for name, parameter in decoder.named_parameters():
            check_numbers(name, parameter)
    kept = _kept(decoder)
    dtypes = _dtypes(decoder, stored) if settings.dtype == "auto" else resolve_dtype(settings.dtype)
    with atomic_folder(place) as temporary, WeightFiles(base, packed=True) as files:
        rounded = {} if settings.dense else files.rounded  # no adapter changes them
        write_model_files(decoder, temporary, tokenizer, read_generation_config(base), dtypes=dtypes, rounded=rounded)
        written = decoder if text is None else load_model(temporary, dtype=exact)
        after = _measured(written, text, weight_bytes(temporary), "after")
        result = Merged(
            place, str(adapter), kept, settings.model_dump(mode="json"), before, after,
            0 if text is None else text.labels, tuple(matrices),
        )  # fmt: skip
        write_report(result.report(), temporary)
    return result


def weight_bytes(folder: Path) -> int:
    """Of all tensors of a model folder."""
    with WeightFiles(folder, packed=True) as files:
        return sum(info.elements * info.dtype.itemsize for file in files.files for info in file.infos.values())


def _place(folder: Path) -> Path:
    in_run = (folder.parent / "recipe.yaml").is_file()
    return folder.parent / "merged" if in_run else folder.parent / f"{folder.name}-merged"


def _is_dense(folder: Path) -> bool:
    return isinstance(read_config(folder).linear, DenseConfig)


def _adapter_bytes(folder: Path) -> int:
    return (folder / WEIGHTS).stat().st_size


@torch.no_grad()
def _measured(decoder: Decoder, text: Calibration | None, size: int, when: str) -> Measured:
    """On the held-out part of the text."""
    if text is None:
        return Measured(size, None, None)
    total = 0.0
    with waiting(f"{when:<9} batches measured", len(text.measured)) as told:
        for batch in text.measured:
            total += float(forward_loss(decoder, next_token, batch)[0].sum)
            told.advance()
    return measured_on(text, size, total)


def _kept(decoder: Decoder) -> str:
    packed = packed_linears(decoder)
    if packed:
        return " and ".join(
            f"{config.bits} bits in {f'groups of {config.group}' if config.group else 'whole rows'}"
            for config in configs_of(packed)
        )
    return WHOLE if isinstance(decoder.config.linear, DenseConfig) else "as factors"


def _dtypes(decoder: Decoder, stored: dict[str, torch.dtype]) -> dict[str, torch.dtype]:
    """As the base has them, and what it has in few bits or as factors as its embedding."""
    usual = stored["embedding.weight"]
    return {name: stored.get(name, usual) for name, _ in decoder.named_parameters()}
