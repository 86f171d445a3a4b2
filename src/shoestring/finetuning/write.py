"""What a fine-tuning run leaves: PEFT folders, or model folders of full runs; and the best of them, read back."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.finetuning.config import FinetuneRecipe
from shoestring.finetuning.material import Material
from shoestring.models.adapters import switch
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, write_model_files
from shoestring.models.peft_folder import load_adapter, write_adapter_files
from shoestring.train.run import Run


def write_files(recipe: FinetuneRecipe, material: Material, decoder: Decoder, folder: Path) -> None:
    """A checkpoint's files: an adapter, or the whole model with what its base says about decoding."""
    tokenizer = material.dataset.tokenizer
    if recipe.adapter.method == "full":
        write_model_files(decoder, folder, tokenizer, material.generation)
    else:
        write_adapter_files(decoder, folder, base_name(recipe.model, material.base), tokenizer=tokenizer)


def base_name(model: str, folder: Path) -> str:
    """What an adapter's config calls its base, for peft as well: a repository of the hub, or an absolute path."""
    return model.removeprefix("hf:") if model.startswith("hf:") else str(folder.absolute())


def best_checkpoint(run: Run) -> Path:
    """The one with the lowest held-out loss, the newest where nothing was measured."""
    best = run.state.best_step
    return run.checkpoint if best is None else run.out / f"step-{best:06d}"


def as_at(checkpoint: Path, recipe: FinetuneRecipe, decoder: Decoder, device: torch.device) -> Decoder:
    """The model as it was at a checkpoint of this run."""
    if recipe.adapter.method == "full":
        return load_model(checkpoint, device=device, dtype=torch.float32)
    load_adapter(decoder, checkpoint, "best")
    switch(decoder, "best")
    return decoder
