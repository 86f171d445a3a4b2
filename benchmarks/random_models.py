"""Models of public shapes with random weights, on disk as Hugging Face folders: large ones need no download.

Speed and memory do not depend on what the weights say. Tensors are drawn and written one slice at a time, so a model
of 6 GB takes little memory to make; it is made once, in the cache, whole or not at all. Its tokenizer is a tiny one
trained on the spot: the embedding keeps the shape's vocabulary, of which the text uses the first ids.
Shapes: the config.json files of Qwen/Qwen2.5-0.5B, 1.5B and 3B, and three small ones.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shoestring.core.errors import RunError
from shoestring.core.files import atomic_folder, cache_dir
from shoestring.core.units import format_bytes

# width, layers, heads, key/value heads, feed-forward width, vocabulary, tied
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "qwen2.5-0.5b": (896, 24, 14, 2, 4864, 151_936, True),
    "qwen2.5-1.5b": (1536, 28, 12, 2, 8960, 151_936, True),
    "qwen2.5-3b": (2048, 36, 16, 2, 11008, 151_936, True),
    "small-9m": (256, 4, 4, 2, 1024, 16_384, True),
    "small-25m": (384, 8, 6, 2, 1536, 16_384, True),
    "small-70m": (512, 12, 8, 4, 2048, 32_768, False),
}
_SCALE = 0.02  # of matrices, as transformers draws them
_SLICE = 1 << 22  # numbers drawn at once
_SHARD = 4_000_000_000  # bytes


def config_json(shape: str, dtype: str) -> dict[str, Any]:
    """The fields of config.json."""
    width, layers, heads, kv_heads, feed_forward, vocabulary, tied = SHAPES[shape]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": feed_forward,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": dtype,
    }


def large_model(shape: str, dtype: str = "bfloat16", parent: Path | None = None, repeated: bool = False) -> Path:
    """The folder of a random model of this shape, made when it is not there yet.

    dtype: of the weights on disk, float32, float16 or bfloat16. parent: where it lies, the cache if not given.
    repeated: the numbers of a tensor's first slice again and again, which takes a tenth of the time. Raises RunError
    when the disk has no room.
    """
    from shoestring.models.builder import build
    from shoestring.models.families.registry import family_named, read_config
    from shoestring.models.gguf.safetensors_stream import DTYPES, StreamedTensor, write_model

    folder = (parent or cache_dir() / "benchmarks") / f"{shape}-{dtype}{'-repeated' * repeated}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        (temporary / "config.json").write_text(json.dumps(config_json(shape, dtype), indent=2) + "\n")
        config, family = read_config(temporary), family_named("qwen2")
        size = config.parameter_count() * DTYPES[dtype][1]
        free = shutil.disk_usage(temporary).free
        if free < size + 1_000_000_000:
            raise RunError(
                f"a {shape} model in {dtype} takes {format_bytes(size)}, and {format_bytes(free)} are free",
                str(folder), "SHOESTRING_CACHE names another folder for what can be made again",
            )  # fmt: skip
        tensors = [
            StreamedTensor(name, tuple(parameter.shape), partial(draw, name, tuple(parameter.shape), repeated))
            for name, parameter in (
                (family.tensor_name(own), parameter)
                for own, parameter in build(config, device="meta").named_parameters()
            )
        ]
        write_model(temporary, tensors, dtype, _SHARD)
        _tokenizer().save(temporary)
    return folder


def draw(name: str, shape: Sequence[int], repeated: bool = False) -> Iterable[Any]:
    """The tensor's values in slices: ones for norms, normal numbers elsewhere, the same for the same name."""
    import numpy as np

    total = int(np.prod(shape))
    random = np.random.default_rng(zlib.crc32(name.encode()))
    first = None
    for start in range(0, total, _SLICE):
        count = min(_SLICE, total - start)
        if "norm" in name:
            yield np.ones(count, np.float32)
        elif repeated:
            if first is None:
                first = random.standard_normal(count, np.float32) * np.float32(_SCALE)
            yield first[:count]
        else:
            yield random.standard_normal(count, np.float32) * np.float32(_SCALE)


def _tokenizer():
    from shoestring.data.train_tokenizer import train_tokenizer

    text = Path(__file__).read_text(encoding="utf-8")
    return train_tokenizer([text], 400)
