"""The reader agrees with gguf's own on whole files and names the fault of broken ones."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from shoestring.core.errors import ModelFileError
from shoestring.models.gguf.reader import MOST_ARRAY_ITEMS, GGUFFile
from tests.models.gguf.gguf_files import tiny_model, write_gguf

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 256,
    version: int = 3,
    pair_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def array(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


HUGE = 2**63 + 8
# What is broken, the file, what the sentence says.
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "short": (b"GGUF\3\0\0\0", "too short"),
    "another format": (b"PK\3\4" + bytes(60), "not a GGUF file"),
    "version 1": (gguf_bytes(version=1), "version 1 is not supported"),
    "version 4": (gguf_bytes(version=4), "version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(32), "big-endian"),
    "absurd pair count": (gguf_bytes(pair_count=2**40), "claims 1099511627776 metadata pairs"),
    "absurd tensor count": (gguf_bytes(tensor_count=2**63), "claims 9223372036854775808 tensors"),
    "key longer than the file": (gguf_bytes([struct.pack("<Q", HUGE)]), "the key of metadata pair 0 claims"),
    "key not UTF-8": (gguf_bytes([string(b"\xff\xfe") + bytes(5)]), "not valid UTF-8"),
    "key twice": (gguf_bytes([pair("a", U32, bytes(4))] * 2), "metadata a is there twice"),
    "unknown value type": (gguf_bytes([pair("a", 13, bytes(8))]), "unknown value type 13"),
    "unknown item type": (gguf_bytes([pair("a", ARRAY, array(99, 1, bytes(8)))]), "unknown value type 99"),
    "truth of 2": (gguf_bytes([pair("a", BOOL, b"\2")]), "neither 0 nor 1"),
    "string longer than the file": (
        gguf_bytes([pair("a", STRING, struct.pack("<Q", 10**6))]),
        "the file ends within",
    ),
    "string of 2^64 - 1": (gguf_bytes([pair("a", STRING, b"\xff" * 8)]), "the file ends within"),
    "string not UTF-8": (gguf_bytes([pair("a", STRING, string(b"\xc3"))]), "'a' is not valid UTF-8"),
    "array longer than the file": (
        gguf_bytes([pair("a", ARRAY, array(U32, 2**60, b""))]),
        "items, more than",
    ),
    "array of 2^64 - 1 bytes": (gguf_bytes([pair("a", ARRAY, array(0, 2**64 - 1, b""))]), "items, more than"),
    "array of arrays": (
        gguf_bytes([pair("a", ARRAY, array(ARRAY, 1, array(U32, 1, bytes(4))))]),
        "array of arrays",
    ),
    "item longer than the file": (
        gguf_bytes([pair("a", ARRAY, array(STRING, 2, string("x") + b"\xff" * 8))]),
        "item 1",
    ),
    "item not UTF-8": (
        gguf_bytes([pair("a", ARRAY, array(STRING, 1, string(b"\xff")))]),
        "item 0 of .* UTF-8",
    ),
    "alignment of 3": (gguf_bytes([pair("general.alignment", U32, b"\3\0\0\0")]), "power of two"),
    "alignment of 0": (gguf_bytes([pair("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment a string": (gguf_bytes([pair("general.alignment", STRING, string("32"))]), "power of two"),
    "no dimensions": (gguf_bytes(tensors=[tensor("w", [])]), "0 dimensions"),
    "five dimensions": (gguf_bytes(tensors=[tensor("w", [1] * 5)]), "5 dimensions"),
    "2^32 - 1 dimensions": (gguf_bytes(tensors=[string("w") + b"\xff" * 40]), "4294967295 dimensions"),
    "dimension of zero": (gguf_bytes(tensors=[tensor("w", [4, 0])]), "dimension of zero"),
    "product beyond 64 bits": (
        gguf_bytes(tensors=[tensor("w", [2**40, 2**40])]),
        "more than the file can hold",
    ),
    "product that wraps to 4": (
        gguf_bytes(tensors=[tensor("w", [2**62 + 1, 4])]),
        "more than the file can hold",
    ),
    "unknown type": (gguf_bytes(tensors=[tensor("w", [4], 5)]), "unknown type 5"),
    "ragged blocks": (gguf_bytes(tensors=[tensor("w", [33], 8)]), "do not divide into Q8_0 blocks of 32"),
    "huge offset": (gguf_bytes(tensors=[tensor("w", [4], offset=2**64 - 32)]), "past the end of the file"),
    "offset past the end": (gguf_bytes(tensors=[tensor("w", [4], offset=256)]), "past the end of the file"),
    "misaligned offset": (gguf_bytes(tensors=[tensor("w", [4], offset=16)]), "not a multiple of 32"),
    "overlap": (gguf_bytes(tensors=[tensor("w", [16]), tensor("v", [4], offset=32)]), "'w' and 'v' overlap"),
    "same place": (gguf_bytes(tensors=[tensor("w", [4]), tensor("v", [4])]), "overlap"),
    "tensor twice": (
        gguf_bytes(tensors=[tensor("w", [4]), tensor("w", [4], offset=32)]),
        "'w' is there twice",
    ),
    "long tensor name": (gguf_bytes(tensors=[tensor("w" * 65, [4])]), "claims 65 bytes"),
    "truncated data": (gguf_bytes(tensors=[tensor("w", [64])], data=255), "truncated or damaged"),
}


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_one_sentence_that_names_it(what: str, tmp_path: Path) -> None:
    data, sentence = BROKEN[what]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)

    def read() -> None:
        with pytest.raises(ModelFileError, match=sentence) as error:
            GGUFFile(path)
        assert str(error.value).startswith(str(path)) and "\n" not in error.value.message

    assert peak_bytes(read) < 1_000_000


def test_the_bytes_that_the_broken_files_are_made_of_are_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    pairs = [
        pair("a", U32, struct.pack("<I", 7)),
        pair("b", ARRAY, array(STRING, 2, string("x") + string("é"))),
    ]
    for version in (2, 3):
        path.write_bytes(
            gguf_bytes(pairs, [tensor("w", [16, 2]), tensor("v", [4], offset=128)], version=version)
        )
        with GGUFFile(path) as file:
            assert file.metadata == {"a": 7, "b": ["x", "é"]}
            assert [(info.name, info.shape, info.nbytes) for info in file.tensors.values()] == [
                ("w", (2, 16), 128),
                ("v", (4,), 16),
            ]


def test_an_array_that_the_file_does_hold_is_still_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    count = MOST_ARRAY_ITEMS + 1
    path.write_bytes(gguf_bytes([pair("a", ARRAY, array(0, count, bytes(count)))]))
    with pytest.raises(ModelFileError, match=f"claims {count} items"):
        GGUFFile(path)


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_a_missing_file_or_a_folder_is_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        GGUFFile(tmp_path / name)


def test_every_kind_of_metadata_and_tensor_reads_as_gguf_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    scalars = {
        "UINT8": 200,
        "INT8": -100,
        "UINT16": 60000,
        "INT16": -30000,
        "UINT32": 2**32 - 1,
        "INT32": -(2**31),
        "UINT64": 2**64 - 1,
        "INT64": -(2**63),
        "FLOAT32": 0.5,
        "FLOAT64": 1e-300,
        "BOOL": True,
        "STRING": "a\n\u00e9",
    }
    for name, value in scalars.items():
        writer.add_key_value(f"a.{name}", value, GGUFValueType[name])
    arrays = {
        "integers": [1, -2, 3],
        "floats": [0.5, 1.5],
        "flags": [True, False],
        "words": ["", "b", "\U0001f600"],
    }
    for name, values in arrays.items():
        writer.add_array(f"a.{name}", values)
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 64)).astype(np.float32)
    for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q5_1):
        writer.add_tensor(kind.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("cube", rng.normal(size=(2, 3, 5)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = gguf.GGUFReader(path)
    with GGUFFile(path) as ours:
        assert {name: ours.metadata[f"a.{name}"] for name in scalars} == scalars
        for name, values in arrays.items():
            assert list(ours.metadata[f"a.{name}"]) == values
        assert isinstance(ours.metadata["a.flags"], np.ndarray) and ours.metadata["a.flags"].dtype == bool
        assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
        assert len(ours.tensors) == len(theirs.tensors) == 4
        for info in theirs.tensors:
            mine = ours.tensors[info.name]
            assert (mine.offset, mine.nbytes, mine.type) == (info.data_offset, info.n_bytes, info.tensor_type)
            assert mine.shape == tuple(reversed(info.shape.tolist()))
            assert bytes(ours.raw(mine)) == info.data.tobytes()


def test_metadata_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    with GGUFFile(write_gguf(tmp_path / "m.gguf", tiny_model("llama"))) as file:
        for read, key, kind in (
            (file.integer, "general.architecture", "an integer"),
            (file.number, "general.architecture", "a finite number"),
            (file.text, "llama.block_count", "a string"),
            (file.flag, "llama.block_count", "true or false"),
            (file.strings, "tokenizer.ggml.token_type", "an array of strings"),
            (file.integers, "tokenizer.ggml.tokens", "an array of integers"),
        ):
            with pytest.raises(ModelFileError, match=f"{key} must be {kind}"):
                read(key)
