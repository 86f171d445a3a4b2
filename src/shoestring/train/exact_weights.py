"""Whole models of a run, saved in the number format of the model that they come from, and the exact weights beside.

Training keeps weights in float32. A model that came in bfloat16 leaves in bfloat16, half the size; what its run goes on
from is STEP/trainer/weights.safetensors: the float32 weights by the decoder's names, of a checkpoint that rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from shoestring.core.device import resolve_dtype
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.decoder import Decoder
from shoestring.models.folder import (
    Dtypes,
    GenerationDefaults,
    dtype_of,
    load_model,
    read_weight,
    read_weights,
    stored_dtypes,
    write_model_files,
    write_weights,
)
from shoestring.models.weights import TensorFile
from shoestring.train.precision_config import PrecisionConfig

EXACT = Path("trainer", "weights.safetensors")


def saved_dtypes(
    precision: PrecisionConfig, origin: Path | None, exact: bool = False, held: Callable[[str], bool] | None = None
) -> Dtypes:
    """What weights are saved in: as the recipe says, else as in the folder that the run began from; None for a fresh
    one's float32. exact: float32 where the recipe leaves it open, for weights that are still to be rounded to codes.
    held: of which parameters that folder has, where it may lack some."""
    if exact and precision.saved == "auto":
        return torch.float32
    if precision.saved != "auto":
        return resolve_dtype(precision.saved)
    return None if origin is None else stored_dtypes(origin, held=held)


def stored_format(origin: Path | None) -> str:
    """Of the weights in the folder that a run began from; a fresh one's is float32."""
    dtype = torch.float32 if origin is None else stored_dtypes(origin, packed=True)["embedding.weight"]
    return str(dtype).removeprefix("torch.")


def write_trained(
    decoder: Decoder, folder: Path, tokenizer: Tokenizer | None, generation: GenerationDefaults | None, dtypes: Dtypes
) -> None:
    """A checkpoint's model files, and its exact weights where those are rounded."""
    write_model_files(decoder, folder, tokenizer, generation, dtypes=dtypes)
    rounded = {
        name: (parameter, parameter.dtype)
        for name, parameter in decoder.named_parameters()
        if dtype_of(dtypes, name, parameter) != parameter.dtype
    }
    if rounded:
        (folder / EXACT).parent.mkdir(exist_ok=True)
        write_weights(rounded, folder / EXACT, decoder.parts)


@torch.no_grad()
def load_trained(folder: Path, device: torch.device | str) -> Decoder:
    """The model of a folder in float32; of a checkpoint, its weights as they were trained."""
    decoder = load_model(folder, device=device, dtype=torch.float32)
    read_exact(decoder, folder)
    return decoder


@torch.no_grad()
def read_trained(decoder: Decoder, folder: Path) -> None:
    """The weights of a checkpoint, as they were trained, into the live model. Raises ModelFileError."""
    read_weights(decoder, folder)
    read_exact(decoder, folder)


def read_exact(decoder: Decoder, folder: Path) -> None:
    """The weights of a checkpoint that are rounded in its model's files, as they were trained."""
    if (folder / EXACT).is_file():
        with TensorFile(folder / EXACT) as file:
            for name, parameter in decoder.named_parameters():
                if name in file.infos:
                    read_weight(file, name, parameter, decoder.parts)
