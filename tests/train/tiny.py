"""A tiny model, tiny batches and a tiny recipe for the tests of this room."""

from pathlib import Path

import torch

from shoestring.data.batch import IGNORED, Batch
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoder import Decoder

SHAPE = {
    "vocabulary": 300,
    "width": 32,
    "layers": 2,
    "context": 64,
    "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 16},
    "feed_forward": {"kind": "swiglu", "width": 48},
}


EXPERTS = {"feed_forward": {"kind": "moe", "width": 16, "experts": 4}}


def model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
    return build(ModelConfig.model_validate({**SHAPE, **changes}), seed=seed, dtype=dtype)


def batch(rows: int, length: int = 16, seed: int = 0, ignored: float = 0.0) -> Batch:
    """Random tokens; a share `ignored` of the labels does not count, unevenly over the rows."""
    random = torch.Generator().manual_seed(seed)
    stream = torch.randint(0, SHAPE["vocabulary"], (rows, length + 1), generator=random)
    labels = stream[:, 1:].clone()
    keep = torch.rand(rows, 1, generator=random) * (2 - 2 * ignored)
    labels[torch.rand(labels.shape, generator=random) * 1.0 > keep] = IGNORED
    if not ignored:
        labels = stream[:, 1:].clone()
    positions = torch.arange(length).expand(rows, length).contiguous()
    return Batch(stream[:, :-1].contiguous(), labels, positions, torch.zeros(rows, length, dtype=torch.int64))


def rows_of(whole: Batch, start: int, end: int) -> Batch:
    parts = (whole.tokens_BT, whole.labels_BT, whole.positions_BT, whole.segments_BT)
    return Batch(*(part[start:end] for part in parts))


def corpus(folder: Path, files: int = 24) -> Path:
    """A folder of small text files, some of which fall into the validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = [f"def f{number}_{i}(x):\n    return x * {i * number} + {i}\n" for i in range(20)]
        (folder / f"part{number:02d}.py").write_text("".join(lines))
    return folder


def recipe_text(source: Path, steps: int = 8, extra: str = "") -> str:
    return f"""
model:
  vocabulary: 320
  width: 32
  layers: 2
  context: 64
  attention: {{kind: gqa, heads: 2, kv_heads: 1, head_width: 16}}
  feed_forward: {{kind: swiglu, width: 48}}
data:
  source: {source}
  tokenizer: {{vocabulary: 320}}
  validation: 0.2
train:
  steps: {steps}
  batch_tokens: 128
  sequence_length: 32
  microbatch: 2
  evaluate_every: 3
  checkpoint_every: 3
optimizer: {{learning_rate: 3e-3}}
schedule: {{kind: wsd, warmup: 2}}
{extra}
"""
