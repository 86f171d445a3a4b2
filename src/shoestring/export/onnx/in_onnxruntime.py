"""An ONNX graph that was just written, run by onnxruntime where that is installed, and compared with our own decoder.

fp32: logits of a text, all at once, and again token by token with the cache, agree to a thousandth of their span, and
greedy tokens are ours. Quantized graphs compute something else on purpose: their agreement is said, and what comes
through the cache must be near what comes without.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoestring.core.errors import ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.export.config import ONNXType
from shoestring.export.onnx import in_genai
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model
from shoestring.nn.config import GQAConfig

TEXT = "The quick brown fox's 12 jumps over 3456 lazy dogs.\n\ndef f(x):\n    return x**2\n"
MOST_PARAMETERS = 500_000_000  # of a model that is held in memory beside onnxruntime's for this
_TOKENS = 32
_GREEDY = 16
_OFF: dict[ONNXType, float] = {"fp32": 1e-3, "int8": 0.05, "int4": 0.05}  # with the cache against without, of the span


class Session:
    """onnxruntime on one graph, with the cache fed back."""

    def __init__(self, path: Path, config: ModelConfig):
        import onnxruntime

        assert isinstance(config.attention, GQAConfig)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [f"{layer}.{part}" for layer in range(config.layers) for part in ("key", "value")]
        self._empty = np.zeros((1, config.attention.kv_heads, 0, config.attention.head_width), np.float32)
        self.cache = dict.fromkeys(self._names, self._empty)
        self.length = 0

    def forget(self) -> None:
        self.cache, self.length = dict.fromkeys(self._names, self._empty), 0

    def run(self, ids: list[int]) -> np.ndarray:
        """Logits [T, V] of one row's next tokens, which join the cache."""
        self.length += len(ids)
        feeds: dict[str, Any] = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            **{f"past_key_values.{name}": held for name, held in self.cache.items()},
        }
        logits, *present = self._session.run(["logits", *(f"present.{name}" for name in self._names)], feeds)
        self.cache = dict(zip(self._names, present, strict=True))
        return logits[0]


def check(
    path: Path, folder: Path, config: ModelConfig, tokenizer: Tokenizer, kind: ONNXType, ends: list[int]
) -> tuple[list[str], list[str]]:
    """-> what was checked and what not, in sentences. ends: ids that end an answer in onnxruntime-genai.

    Raises ModelFileError where the graph computes something else."""
    if importlib.util.find_spec("onnxruntime") is None:
        return [], ["in onnxruntime, which is not installed"]
    if config.parameter_count() > MOST_PARAMETERS:
        return [], [f"in onnxruntime: a model of more than {MOST_PARAMETERS:,} parameters"]
    session = Session(path, config)
    ids = tokenizer.encode(TEXT)[: max(min(_TOKENS, config.context - _GREEDY), 2)]
    checked = [_compare(session, folder, ids, kind)]
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return checked, [f"in {in_genai.NAME}, which is not installed"]
    found, unchecked = in_genai.check(path.parents[1], ids, greedy(session, ids), ends, TEXT, tokenizer.encode(TEXT))
    return [*checked, *found], unchecked


def _compare(session: Session, folder: Path, ids: list[int], kind: ONNXType) -> str:
    import onnxruntime

    logits = session.run(ids)
    if not np.isfinite(logits).all():
        raise _differs("gives logits that are not finite")
    session.forget()
    half = len(ids) // 2
    through = np.concatenate([session.run(ids[:half]), *(session.run([i]) for i in ids[half:])])
    decoder = load_model(folder)
    with torch.no_grad():
        ours = decoder.head(decoder(torch.tensor([ids]))[0])[0].numpy()
    span = float(ours.max() - ours.min())
    if not np.abs(through - logits).max() <= _OFF[kind] * span:
        raise _differs("gives other logits with its cache than without")
    version = f"in onnxruntime {onnxruntime.__version__}"
    if kind != "fp32":
        same = float((ours.argmax(-1) == logits.argmax(-1)).mean())
        return f"{version}: with and without cache; the likeliest token is the model's for {same:.0%} of a text"
    if not np.abs(ours - logits).max() <= _OFF[kind] * span:
        raise _differs("gives other logits than the model")
    if greedy(session, ids) != _greedy(decoder, ids):
        raise _differs("goes on with other tokens than the model")
    return f"{version}: logits with and without cache, {_GREEDY} greedy tokens"


def greedy(session: Session, ids: list[int], count: int = _GREEDY) -> list[int]:
    """The likeliest tokens after a prompt, one by one."""
    session.forget()
    found, logits = [], session.run(ids)
    for _ in range(count):
        found.append(int(logits[-1].argmax()))
        logits = session.run(found[-1:])
    return found


def _greedy(decoder: Decoder, ids: list[int]) -> list[int]:
    found: list[int] = []
    with torch.no_grad():
        for _ in range(_GREEDY):
            hidden, _ = decoder(torch.tensor([ids + found]))
            found.append(int(decoder.head(hidden[0, -1:]).argmax()))
    return found


def _differs(what: str) -> ModelFileError:
    return ModelFileError(f"the graph that was written {what}, so there is no folder", hint="a fault of the export")
