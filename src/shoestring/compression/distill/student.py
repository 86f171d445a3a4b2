"""The student: fresh, or of a folder, with every weight trained or an adapter; and what a run leaves of it."""

from __future__ import annotations

from pathlib import Path

import torch

from shoestring.compression.distill.config import DistillRecipe
from shoestring.compression.distill.material import Material
from shoestring.compression.distill.teacher import load_checked
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.decoder import Decoder
from shoestring.models.folder import Dtypes
from shoestring.models.peft_folder import load_adapter, read_adapter, write_adapter_files
from shoestring.train.exact_weights import load_trained, read_trained, write_trained


def student_model(
    recipe: DistillRecipe, material: Material, checkpoint: Path | None, device: torch.device
) -> Decoder:
    """As it begins, or as a checkpoint has it."""
    folder = material.student.folder
    if material.lora:
        assert folder is not None
        decoder = load_checked(folder, device)
        if checkpoint is not None:
            load_adapter(decoder, checkpoint)
        else:
            attach(decoder, recipe.adapter.lora(), recipe.seed, recipe.adapter.modules)
        return decoder
    if checkpoint is not None:
        return load_trained(checkpoint, device)
    if folder is None:
        return build(material.student.config, device=device, seed=recipe.seed)
    return load_checked(folder, device)


def read_student(material: Material, decoder: Decoder, folder: Path) -> None:
    """The weights of a checkpoint into the student that is being trained."""
    if material.lora:
        read_adapter(decoder, folder)
    else:
        read_trained(decoder, folder)


def write_student(material: Material, decoder: Decoder, folder: Path, dtypes: Dtypes) -> None:
    """A model folder, or the adapter's, in these number formats."""
    tokenizer = material.dataset.tokenizer
    if material.lora:
        write_adapter_files(decoder, folder, material.student.folder, tokenizer=tokenizer)
    else:
        write_trained(decoder, folder, tokenizer, material.generation, dtypes)
