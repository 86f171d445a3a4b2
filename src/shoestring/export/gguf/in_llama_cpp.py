"""A GGUF file in llama.cpp itself, where llama-cpp-python is installed: token ids and logits against ours.

Ours are of a decoder that has exactly the numbers of the file. llama.cpp rounds what goes into a product to the format
of the weights, so logits are not the same: they must be the same but for a little noise, which a wrong order of rows, a
wrong scale or a swapped tensor is not. How many of its greedy tokens are ours is said.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shoestring.core.errors import ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import GGUFType
from shoestring.export.gguf.check import PROBE, decoded_parameters
from shoestring.export.gguf.tensors import Source
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.gguf.reader import GGUFFile

INTERPRETER = "SHOESTRING_LLAMA_CPP"
"""Names the Python that has llama-cpp-python, where it is not the one that runs."""
MOST_PARAMETERS = 500_000_000  # of a model that is held in memory a second time for this
_TOKENS = 8
_PROMPTS = 2
_SECONDS = 600
# The least correlation of its logits with ours, over the vocabulary.
_ALIKE: dict[GGUFType, float] = {"f32": 0.9999, "f16": 0.99, "bf16": 0.99}
_ALIKE_QUANTIZED = 0.9
_ALIKE_EXPERTS = 0.8  # a little noise may choose another expert


class Compared(NamedTuple):
    """version: of llama-cpp-python. alike: the least correlation of logits. tokens: greedy ones of llama.cpp; equal:
    those that are ours too, after the same tokens."""

    version: str
    alike: float
    tokens: int
    equal: int


def interpreter() -> str | None:
    """The Python with llama-cpp-python; None where there is none."""
    if named := os.environ.get(INTERPRETER):
        return named
    return sys.executable if importlib.util.find_spec("llama_cpp") is not None else None


def ask(python: str, **asked: Any) -> dict[str, Any]:
    """What `llama_child` answers. Raises ModelFileError where llama.cpp refuses the file or ends."""
    # As text, since a script's own folder comes first among the places that modules are looked for in.
    child = Path(__file__).with_name("llama_child.py").read_text(encoding="utf-8")
    try:
        run = subprocess.run(
            [python, "-c", child], input=json.dumps(asked), capture_output=True, text=True, errors="replace",
            timeout=_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelFileError(f"llama.cpp could not be asked about the file: {error}") from error
    if run.returncode:
        lines = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise ModelFileError(
            f"llama.cpp does not take the file, so there is none: {lines[-1][:300] if lines else run.returncode}",
            hint="this is a fault of the export",
        )
    return json.loads(run.stdout.splitlines()[-1])


def compare(
    python: str, path: Path, asked: GGUFType, config: ModelConfig, sources: Sequence[Source], tokenizer: Tokenizer
) -> Compared | None:
    """None where llama-cpp-python is there and cannot be imported. config: without shared blocks; sources: of
    the file's tensors.

    Raises ModelFileError for what llama.cpp does otherwise.
    """
    texts = [PROBE, " ".join(token.content for token in [*tokenizer.backend.get_added_tokens_decoder().values()][:64])]
    words = tokenizer.encode(PROBE)
    most = max(min(config.context - _TOKENS, 24), 1)
    prompts = [words[: most // 2 + 1], words[-most:]][:_PROMPTS]
    found = ask(
        python, file=str(path), context=min(config.context, 128), texts=texts, prompts=prompts, tokens=_TOKENS
    )
    if "missing" in found:
        return None
    ids = [tokenizer.encode(text, specials) for text in texts for specials in (False, True)]
    if found["ids"] != ids:
        raise _differs("makes other token ids of a text")
    if found["template"] != tokenizer.chat_template:
        raise _differs("has another chat template")
    if (found["opening"][:1] == [tokenizer.bos_id]) != tokenizer.opens_with_bos():
        raise _differs("begins a text with other tokens")
    decoder = _decoder(path, config, sources)
    alike, equal = 1.0, 0
    for prompt, tokens, packed in zip(prompts, found["greedy"], found["logits"], strict=True):
        with torch.no_grad():
            hidden, _ = decoder(torch.tensor([prompt + tokens[:-1]]))
            logits = decoder.head(hidden[0, len(prompt) - 1 :])
        alike = min(alike, _correlation(logits[0].numpy(), np.frombuffer(base64.b64decode(packed), np.float32)))
        equal += int((logits.argmax(-1) == torch.tensor(tokens)).sum())
    least = _ALIKE_EXPERTS if config.feed_forward.kind == "moe" else _ALIKE.get(asked, _ALIKE_QUANTIZED)
    if not alike >= least:
        raise _differs(f"gives other logits (a correlation of {alike:.3f})")
    return Compared(found["version"], alike, _TOKENS * len(prompts), equal)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """1 of two constants, such as the logits of a model whose head is zero."""
    if one.std() == 0 and other.std() == 0:
        return 1.0
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.corrcoef(one, other)[0, 1]))


def _decoder(path: Path, config: ModelConfig, sources: Sequence[Source]) -> Decoder:
    """A decoder with the numbers of the file, in float32."""
    decoder = build(config)
    parameters = dict(decoder.named_parameters())
    with GGUFFile(path) as file, torch.no_grad():
        for name, values in decoded_parameters(file, sources):
            parameters[name].copy_(torch.from_numpy(values).reshape(parameters[name].shape))
    return decoder.eval()


def _differs(what: str) -> ModelFileError:
    return ModelFileError(f"llama.cpp {what}, so there is no file", hint="this is a fault of the export")
