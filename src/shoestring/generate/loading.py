"""From the name of a model to what decodes it: the decoder with weights kept as asked, the tokenizer, the advice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from shoestring.core.device import resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels.decode import decode_kernels
from shoestring.models.adapters import merge
from shoestring.models.decoder import Decoder
from shoestring.models.decoding_formats import check_format
from shoestring.models.decoding_weights import kept_as, load_for_decoding
from shoestring.models.families.registry import read_quantization
from shoestring.models.folder import GenerationDefaults, load_model, read_generation_config
from shoestring.models.get import gguf_file
from shoestring.models.packed_files import rounds_inputs
from shoestring.models.peft_folder import is_adapter, load_adapted
from shoestring.models.resolve import Say, find_model


class Opened(NamedTuple):
    """folder: of the model or adapter, or the GGUF file whose own blocks are decoded."""

    decoder: Decoder
    tokenizer: Tokenizer
    folder: Path
    defaults: GenerationDefaults


def open_model(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    weights: str = "source",
    say: Say | None = None,
) -> Opened:
    """weights: see `models.decoding_formats`. Raises ConfigError for what cannot be served, and what loading raises."""
    check_format(weights, str(device), str(dtype))
    asked = weights
    where, number_format = resolve_device(device), torch.float32 if dtype == "auto" else resolve_dtype(dtype)
    if weights == "float32" and where.type != "cpu":
        weights = "source"  # in float32, which is what auto means
    if (weights, dtype, where.type) == ("source", "auto", "cpu") and decode_kernels() is not None:
        weights = "float32"  # the same numbers, in native passes
    if weights != "source" and where.type != "cpu":
        where = torch.device("cpu")
        if say is not None:
            say(f"device    cpu: weights {weights} are multiplied there")
    if weights != "source" and say is not None and decode_kernels() is None:
        say("kernels   none: without a C++ compiler (g++) torch multiplies, several times slower")
    file = gguf_file(model, say) if weights == "file" else None
    if file is not None:
        from shoestring.models.gguf.load import load_gguf

        decoder, tokenizer, defaults = load_gguf(file)
        return Opened(decoder, tokenizer, file, defaults)
    folder = base = find_model(model, say=say)
    if is_adapter(folder):
        if weights == "file":
            raise ConfigError(
                "weights file: an adapter is merged into its base, whose weights are then no longer the file's",
                hint="take float32, bf16, int8 or int4",
            )
        decoder, base = load_adapted(folder, device=where, dtype=number_format, say=say)
        if weights in ("source", "float32") and rounds_inputs(decoder):
            decoder.eval()  # one matrix would take the adapter's inputs rounded too, or none
        else:
            decoder = merge(decoder)  # decoding then costs what it costs without an adapter
        if weights != "source":
            decoder = kept_as(decoder, weights)
    elif weights != "source":
        decoder = load_for_decoding(folder, weights)
    else:
        decoder = load_model(folder, device=where, dtype=number_format)
    if asked == "source" and say is not None and where.type == "cpu" and read_quantization(base) is not None:
        say("weights   of few bits, made dense: --weights file multiplies them as they are, in less memory and faster")
    tokenizer = Tokenizer.load(folder if (folder / "tokenizer.json").is_file() else base)
    return Opened(decoder, tokenizer, folder, read_generation_config(base))
