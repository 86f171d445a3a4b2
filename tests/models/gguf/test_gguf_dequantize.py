"""Slices of a tensor hold what gguf's own decoding of the whole tensor holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

from shoestring.core.errors import ModelFileError
from shoestring.models.gguf import dequantize
from shoestring.models.gguf.reader import GGUFFile, TensorInfo
from tests.models.gguf.gguf_files import tiny_model, write_gguf

ROWS, WIDTH = 6, 512


def sliced(raw: bytes, kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Through read_slices, two rows at a time."""
    monkeypatch.setattr(dequantize, "SLICE_BYTES", 2 * 4 * WIDTH)
    info = TensorInfo("w", (ROWS, WIDTH), kind, 0, len(raw))
    file = SimpleNamespace(raw=lambda info: memoryview(raw))
    return list(dequantize.read_slices(file, info))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", sorted(dequantize.SUPPORTED - {GGMLQuantizationType.F64}), ids=lambda kind: kind.name
)
def test_slices_equal_gguf_on_random_bytes(
    kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(int(kind)).integers(0, 256, ROWS * WIDTH // block * size, dtype=np.uint8)
    slices = sliced(raw.tobytes(), kind, monkeypatch)
    assert [part.shape for part in slices] == [(2, WIDTH)] * 3
    plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    with np.errstate(all="ignore"):
        whole = quants.dequantize(raw.view(plain[kind]) if kind in plain else raw.reshape(ROWS, -1), kind)
    np.testing.assert_array_equal(np.concatenate(slices), whole.reshape(ROWS, WIDTH))


def test_q4_1_is_scale_times_nibble_plus_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    # The format, by hand: two float16, then 16 bytes whose low nibbles are values 0..15 and high ones 16..31.
    rng = np.random.default_rng(0)
    scale, least = np.float16(0.37), np.float16(-1.5)
    nibbles = rng.integers(0, 16, (ROWS * WIDTH // 32, 32), dtype=np.uint8)
    packed = nibbles[:, :16] | nibbles[:, 16:] << 4
    header = np.frombuffer(scale.tobytes() + least.tobytes(), np.uint8)
    raw = np.concatenate([np.broadcast_to(header, (len(packed), 4)), packed], axis=1).tobytes()
    expected = np.float32(scale) * nibbles.astype(np.float32) + np.float32(least)
    found = np.concatenate(sliced(raw, GGMLQuantizationType.Q4_1, monkeypatch))
    np.testing.assert_array_equal(found, expected.reshape(ROWS, WIDTH))


def test_integer_tensors_are_refused_as_weights(tmp_path: Path) -> None:
    extra = {"numbers": np.arange(4, dtype=np.int32)}
    with GGUFFile(write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra=extra)) as file:
        with pytest.raises(ModelFileError, match="'numbers' has the unsupported type I32"):
            next(dequantize.read_slices(file, file.tensors["numbers"]))
