"""A GGUF file in llama.cpp itself, where llama-cpp-python is installed: token ids and greedy tokens against ours.

llama.cpp's greedy tokens are scored by our own decoder, which has exactly the numbers that the file holds: each must be
our first choice too, or as good but for rounding (llama.cpp rounds what goes into a product as it has the weights).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from shoestring.core.errors import ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import GGUFType
from shoestring.export.gguf.check import PROBE, decoded_weights
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.families.family import Family
from shoestring.models.gguf.reader import GGUFFile

INTERPRETER = "SHOESTRING_LLAMA_CPP"
"""Names the Python that has llama-cpp-python, where it is not the one that runs."""
MOST_PARAMETERS = 500_000_000  # of a model that is held in memory a second time for this
_TOKENS = 8
_PROMPTS = 2
_SECONDS = 600
# By how much of the span between mean and largest logit a token may be behind ours.
_BEHIND: dict[GGUFType, float] = {"f32": 0.01, "f16": 0.01, "bf16": 0.02}
_BEHIND_QUANTIZED = 0.1


class Compared(NamedTuple):
    """version: of llama-cpp-python. tokens: greedy ones of llama.cpp, all as good as ours; equal: our very own."""

    version: str
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
    python: str, path: Path, asked: GGUFType, config: ModelConfig, family: Family, tokenizer: Tokenizer
) -> Compared | None:
    """None where llama-cpp-python is there and cannot be imported. config: as the file has it, without experts.

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
    decoder = _decoder(path, config, family)
    behind = _BEHIND.get(asked, _BEHIND_QUANTIZED)
    equal = 0
    for prompt, tokens in zip(prompts, found["greedy"], strict=True):
        with torch.no_grad():
            hidden, _ = decoder(torch.tensor([prompt + tokens[:-1]]))
            logits = decoder.head(hidden[0, len(prompt) - 1 :])
        best, index = logits.max(-1)
        span = best - logits.mean(-1)
        chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        if bool((best - chosen > behind * span).any()):
            raise _differs("goes on with other tokens")
        equal += int((index == torch.tensor(tokens)).sum())
    return Compared(found["version"], _TOKENS * len(prompts), equal)


def _decoder(path: Path, config: ModelConfig, family: Family) -> Decoder:
    """A decoder with the numbers of the file, in float32."""
    decoder = build(config)
    parameters = {family.tensor_name(name): parameter for name, parameter in decoder.named_parameters()}
    with GGUFFile(path) as file, torch.no_grad():
        for name, shape, values in decoded_weights(file):
            parameters[name].copy_(torch.from_numpy(values).reshape(shape))
    return decoder.eval()


def _differs(what: str) -> ModelFileError:
    return ModelFileError(f"llama.cpp {what}, so there is no file", hint="this is a fault of the export")
