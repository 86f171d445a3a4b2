"""GGUF files for comparisons: one file's model in another format, and random models of public shapes.

Formats are those that gguf's own package can write: F32, F16, Q8_0, Q4_0, Q4_1. Files are made once, in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType as Kind

from benchmarks.random_models import SHAPES, draw
from shoestring.core.files import cache_dir

_TENSORS = {
    "attn_norm": (), "attn_q": ("heads", "width"), "attn_k": ("keys", "width"), "attn_v": ("keys", "width"),
    "attn_output": ("width", "heads"), "ffn_norm": (), "ffn_gate": ("inner", "width"), "ffn_up": ("inner", "width"),
    "ffn_down": ("width", "inner"),
}  # fmt: skip


def in_format(path: Path, kind: str, parent: Path | None = None) -> Path:
    """The file with every matrix in this format; itself where it is so already but for the embedding.

    The embedding, which is the head of a tied model, is at least Q8_0, as llama.cpp's own quantizer leaves it.
    """
    target = (parent or cache_dir() / "benchmarks") / f"{path.stem}-{kind}.gguf"
    if target.is_file():
        return target
    reader = gguf.GGUFReader(path)
    writer = _Writer(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.inner.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
        writer.add(tensor.name, np.asarray(values, np.float32), kind)
    return writer.done()


def random_model(shape: str, kind: str, parent: Path | None = None) -> Path:
    """A Qwen2 model with random weights, as `random_models` draws them."""
    target = (parent or cache_dir() / "benchmarks") / f"{shape}-{kind}.gguf"
    if target.is_file():
        return target
    width, layers, heads, kv_heads, inner, vocabulary, tied = SHAPES[shape]
    head = width // heads
    writer = _Writer(target, "qwen2")
    out = writer.inner
    out.add_block_count(layers)
    out.add_context_length(32_768)
    out.add_embedding_length(width)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(1_000_000.0)
    out.add_vocab_size(vocabulary)
    _tokenizer(out, vocabulary)
    sizes = {"width": width, "heads": heads * head, "keys": kv_heads * head, "inner": inner}
    names: list[tuple[str, tuple[int, ...]]] = [("token_embd.weight", (vocabulary, width))]
    for layer in range(layers):
        for name, of in _TENSORS.items():
            names.append((f"blk.{layer}.{name}.weight", tuple(sizes[one] for one in of) or (width,)))
        for name in ("attn_q", "attn_k", "attn_v"):
            names.append((f"blk.{layer}.{name}.bias", (sizes[_TENSORS[name][0]],)))
    names.append(("output_norm.weight", (width,)))
    if not tied:
        names.append(("output.weight", (vocabulary, width)))
    for name, of in names:
        slices = [part.ravel() for part in draw(name, of, repeated=True)]
        writer.add(name, np.concatenate(slices).reshape(of), kind)
    return writer.done()


class _Writer:
    """A file that appears whole; matrices are rounded to its format."""

    def __init__(self, target: Path, architecture: str):
        target.parent.mkdir(parents=True, exist_ok=True)
        self.target, self._temporary = target, target.with_suffix(".part")
        self.inner = gguf.GGUFWriter(self._temporary, architecture)

    def add(self, name: str, values: np.ndarray, kind: str) -> None:
        whole = kind not in ("F32", "F16") and name in ("token_embd.weight", "output.weight")
        of = Kind[("Q8_0" if whole else kind) if values.ndim > 1 else "F32"]
        if of == Kind.F32:
            self.inner.add_tensor(name, np.ascontiguousarray(values))
        else:
            self.inner.add_tensor(name, quants.quantize(np.ascontiguousarray(values), of), raw_dtype=of)

    def done(self) -> Path:
        self.inner.write_header_to_file()
        self.inner.write_kv_data_to_file()
        self.inner.write_tensors_to_file()
        self.inner.close()
        return self._temporary.replace(self.target)


def _tokenizer(out: Any, vocabulary: int) -> None:
    """Bytes, one merge, an end token, and names for the rest."""
    tokens = [*_bytes(), "ab", "<|end|>"]
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL]
    more = vocabulary - len(tokens)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([*tokens, *(f"[PAD{i}]" for i in range(more))])
    out.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * more])
    out.add_token_merges(["a b"])
    out.add_eos_token_id(len(tokens) - 1)


def _bytes() -> Iterator[str]:
    from shoestring.data.tokenizer import byte_alphabet

    yield from sorted(byte_alphabet(), key=byte_alphabet().__getitem__)
