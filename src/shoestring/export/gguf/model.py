"""A model folder as a GGUF file for llama.cpp and Ollama, with its tokenizer and chat template.

Weights stream from the folder into the file, a slice of a tensor at a time. The file is checked under its temporary
name (`check`, and llama.cpp itself where it can be asked) and appears only then, whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gguf.constants import GGML_QUANT_VERSION

from shoestring.core.files import atomic_write
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import GGUFType
from shoestring.export.gguf import in_llama_cpp
from shoestring.export.gguf.architecture import Architecture, architecture_of
from shoestring.export.gguf.check import check_model
from shoestring.export.gguf.format import Value, write_gguf
from shoestring.export.gguf.mixture import FILE_TYPES, Mixture
from shoestring.export.gguf.modelfile import modelfile
from shoestring.export.gguf.tensors import Source, plan_tensors
from shoestring.export.gguf.tokenizer import end_tokens, left_out, tokenizer_metadata
from shoestring.export.result import Exported, modelfile_path
from shoestring.models.folder import check_rows, read_generation_config
from shoestring.models.resolve import Say
from shoestring.models.weight_files import WeightFiles

_PLACES_FOR_ENDS = 3  # eos, eot and eom


def export_model(folder: Path, out: Path, kind: GGUFType, name: str, say: Say | None = None) -> Exported:
    """Write `out`, and a Modelfile beside it. name: what the model is called inside.

    Raises ModelFileError and TokenizerError for what llama.cpp does not have, and for what does not read back; RunError
    where the disk is full.
    """
    tell = say or (lambda sentence: None)
    with WeightFiles(folder) as files:
        architecture = architecture_of(files.config, str(folder))
        tokenizer, generation = Tokenizer.load(folder), read_generation_config(folder)
        check_rows(tokenizer, files.config, folder)
        experts = architecture.experts
        mixture = Mixture(kind, files.config.layers, files.config.tied_head, 0 if experts is None else experts.experts)
        sources = plan_tensors(files, architecture, mixture)
        ends = end_tokens(tokenizer, generation)[:_PLACES_FOR_ENDS]
        metadata = {
            **_general(architecture, kind, name),
            **architecture.metadata(),
            **tokenizer_metadata(tokenizer, files.config.vocabulary, generation, str(folder)),
        }
        if beyond := left_out(tokenizer, generation):
            tell(f"end tokens that a GGUF file has no place for: {', '.join(beyond)}")
        beside = modelfile_path(out)
        tell(f"writing {out.name}")
        with atomic_write(out, "wb") as file:
            write_gguf(file, metadata, [source.tensor() for source in sources])
            file.flush()
            written, size = Path(file.name), file.tell()
            tell("reading it back")
            check_model(written, sources, architecture, tokenizer, ends)
            config = "config, " if experts is None else ""
            checked = [f"read back here: {config}every tensor, token ids, chat template"]
            unchecked: list[str] = []
            _ask_llama_cpp(written, kind, architecture, sources, tokenizer, checked, unchecked)
            with atomic_write(beside) as text:
                text.write(modelfile(out.name, tokenizer, generation, ends, files.config.context))
    return Exported(out, size, _formats(sources), checked, unchecked, [beside])


def _general(architecture: Architecture, kind: GGUFType, name: str) -> dict[str, Value]:
    return {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(FILE_TYPES[kind]),
        "general.quantization_version": GGML_QUANT_VERSION,
    }


def _formats(sources: Sequence[Source]) -> dict[str, int]:
    return dict(Counter(source.kind.name for source in sources).most_common())


def _ask_llama_cpp(
    path: Path,
    kind: GGUFType,
    architecture: Architecture,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    checked: list[str],
    unchecked: list[str],
) -> None:
    """Adds a sentence to one of the two lists. Raises ModelFileError for what llama.cpp does otherwise."""
    python = in_llama_cpp.interpreter()
    if python is None:
        unchecked.append("in llama.cpp: llama-cpp-python is not installed")
    elif architecture.config.parameter_count() > in_llama_cpp.MOST_PARAMETERS:
        unchecked.append(f"in llama.cpp: of more than {in_llama_cpp.MOST_PARAMETERS:,} parameters")
    else:
        found = in_llama_cpp.compare(python, path, kind, architecture.config, sources, tokenizer)
        if found is None:
            unchecked.append("in llama.cpp: llama-cpp-python cannot be imported")
            return
        checked.append(
            f"in llama.cpp (llama-cpp-python {found.version}): token ids, chat template; logits, a correlation of"
            f" {found.alike:.4f}; of {found.tokens} greedy tokens {found.equal} are ours"
        )
