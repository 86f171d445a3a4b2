"""Mutated GGUF files convert, or are refused in a sentence: no other exception, no large allocation."""

from __future__ import annotations

import random
import struct
import tracemalloc
from functools import cache
from pathlib import Path

import pytest

from shoestring.core.errors import ModelFileError, TokenizerError
from shoestring.models.folder import read_config as read_folder_config
from shoestring.models.gguf.convert import convert
from shoestring.models.gguf.reader import GGUFFile
from tests.models.gguf.gguf_files import tiny_model, write_gguf

EXTREMES = [
    0,
    1,
    2,
    3,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 8,
    2**64 - 1,
]


@cache
def originals(folder: Path) -> list[bytes]:
    kinds = [("llama", "Q4_0", "smollm"), ("qwen2", "Q8_0", "qwen2"), ("qwen3", "F16", "llama-bpe")]
    return [
        write_gguf(folder / f"{arch}.gguf", tiny_model(arch), kind, pre).read_bytes()
        for arch, kind, pre in kinds
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flips, fields set to extremes, truncations, cuts and repeats; mostly in the header."""
    found = bytearray(data)
    header = data.rindex(b".weight") + 64
    # Half of them hit what stands before the vocabulary, where each byte matters.
    early = data.index(b"tokenizer.ggml.tokens")
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        at = rng.randrange(rng.choice([early, early, header, header, len(found)]))
        kind = rng.choice(["flip", "flip", "byte", "u64", "u64", "u32", "truncate", "cut", "repeat"])
        if kind == "flip":
            found[at % len(found)] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            found[at % len(found)] = rng.randrange(256)
        elif kind in ("u64", "u32"):
            size = 8 if kind == "u64" else 4
            found[at : at + size] = struct.pack("<Q", rng.choice(EXTREMES))[:size]
        elif kind == "truncate" and rng.random() < 0.3:
            del found[at:]
        elif kind == "cut":
            del found[at : at + rng.choice([1, 4, 8, 100])]
        elif kind == "repeat":
            found[at:at] = found[at : at + rng.choice([1, 8, 64])]
        if not found:
            break
    return bytes(found)


def check_mutations(seeds: range, folder: Path) -> tuple[int, int]:
    """How many were refused and how many converted."""
    refused = converted = 0
    for seed in seeds:
        rng = random.Random(seed)
        path = folder / "mutated.gguf"
        path.write_bytes(mutate(rng.choice(originals(folder)), rng))
        tracemalloc.start()
        try:
            read_folder_config(convert(path, folder / "out", replace=True))
            converted += 1
        except (ModelFileError, TokenizerError) as error:
            assert error.message and "\n" not in error.message, seed
            refused += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 50_000_000, seed
    return refused, converted


def test_200_mutated_files_convert_or_are_refused_in_a_sentence(tmp_path: Path) -> None:
    refused, converted = check_mutations(range(200), tmp_path)
    assert refused > 100 and converted > 5


@pytest.mark.long
def test_2000_mutated_files_convert_or_are_refused_in_a_sentence(tmp_path: Path) -> None:
    refused, converted = check_mutations(range(1000, 3000), tmp_path)
    assert refused > 1000 and converted > 50


def test_a_file_cut_anywhere_in_its_header_is_refused(tmp_path: Path) -> None:
    data = originals(tmp_path)[0]
    path = tmp_path / "cut.gguf"
    for at in range(0, len(data), 397):
        path.write_bytes(data[:at])
        with pytest.raises(ModelFileError):
            GGUFFile(path)
