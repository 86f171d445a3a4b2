"""What a fine-tuning run leaves: PEFT folders, or model folders of full runs; and the best of them, read back."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.finetuning.config import FinetuneRecipe
from shoestring.finetuning.material import Material
from shoestring.models.adapters import switch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import Dtypes
from shoestring.models.peft_folder import load_adapter, read_adapter, write_adapter_files
from shoestring.models.wheels import KNOWN
from shoestring.offload.pipeline.load import load_trained_part
from shoestring.offload.pipeline.model import SplitDecoder
from shoestring.train.exact_weights import load_trained, read_trained, write_trained
from shoestring.train.precision import prepared
from shoestring.train.precision_config import PrecisionConfig
from shoestring.train.run import Run


def write_files(
    recipe: FinetuneRecipe, material: Material, decoder: Decoder, folder: Path, dtypes: Dtypes = None
) -> None:
    """A checkpoint's files: an adapter, or the whole model, in these number formats, with what its base says about
    decoding."""
    tokenizer = material.dataset.tokenizer
    if recipe.adapter.method == "full":
        write_trained(decoder, folder, tokenizer, material.generation, dtypes)
    else:
        write_adapter_files(decoder, folder, base_name(recipe.model, material.base), tokenizer=tokenizer)


def read_files(recipe: FinetuneRecipe, decoder: Decoder, folder: Path) -> None:
    """The weights of a checkpoint into the model that is being trained."""
    if recipe.adapter.method == "full":
        read_trained(decoder, folder)
    else:
        read_adapter(decoder, folder)


def base_name(model: str, folder: Path) -> str | Path:
    """What `base_fields` is to make a name of that finds the base elsewhere too: what the user called it, where others
    know that; else its folder."""
    known = KNOWN.get(model)
    if Path(model).expanduser().exists() or (known is not None and known.hub is None):
        return folder
    return model


def best_checkpoint(run: Run) -> Path:
    """The one with the lowest held-out loss, the newest where nothing was measured."""
    best = run.state.best_step
    return run.checkpoint if best is None else run.out / f"step-{best:06d}"


def as_at(checkpoint: Path, recipe: FinetuneRecipe, decoder: Decoder, device: torch.device) -> Decoder:
    """The model as it was at a checkpoint of this run."""
    if recipe.adapter.method == "full" and isinstance(decoder, SplitDecoder):
        return load_trained_part(checkpoint, decoder.place, device)
    if recipe.adapter.method == "full":
        return prepared(lambda: load_trained(checkpoint, device), PrecisionConfig(), recipe.quantize)()
    load_adapter(decoder, checkpoint, "best")
    switch(decoder, "best")
    return decoder
