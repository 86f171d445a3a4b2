"""Reads past the page cache: the same bytes, wherever they lie in the file and in memory, or a clear no."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from shoestring.core.direct import BLOCK, DirectFile

SIZE = 3 * (1 << 20) + 777


@pytest.fixture
def content(tmp_path: Path) -> tuple[Path, np.ndarray]:
    bytes = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)
    (tmp_path / "file").write_bytes(bytes.tobytes())
    return tmp_path / "file", bytes


def memory(size: int, shift: int) -> np.ndarray:
    """Bytes at an address that is `shift` more than a multiple of a block, with a guard behind them."""
    whole = np.full(size + 2 * BLOCK, 7, np.uint8)
    begin = (shift - whole.ctypes.data) % BLOCK
    return whole[begin : begin + size + 1]


def direct_here(file: Path) -> bool:
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except (AttributeError, OSError):
        return False
    return True


def test_every_part_is_read_as_it_is(content: tuple[Path, np.ndarray]) -> None:
    path, bytes = content
    draw, file = random.Random(2), DirectFile(path)
    parts = [(0, SIZE), (0, BLOCK), (BLOCK, 2 * BLOCK), (SIZE - 1, 1), (SIZE - 777, 777), (5, 0)]
    for _ in range(60):
        begin = draw.randrange(SIZE)
        parts.append((begin, draw.randrange(1, min(SIZE - begin, draw.choice((100, 9000, SIZE))) + 1)))
    for number, (begin, size) in enumerate(parts):
        shift = begin if number % 4 else draw.randrange(BLOCK)
        target = memory(size, shift)
        if file.read_into(begin, target[:size]):
            assert np.array_equal(target[:size], bytes[begin : begin + size])
        else:
            assert not direct_here(path) or (shift - begin) % BLOCK
        assert target[size] == 7, (begin, size)
    file.close()


def test_what_lies_as_in_the_file_is_read_in_place(
    content: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bytes = content
    if not direct_here(path):
        pytest.skip("no direct reads on this file system")
    read, sizes = os.preadv, []
    monkeypatch.setattr(os, "preadv", lambda file, to, at: sizes.append(len(to[0])) or read(file, to, at))
    target = memory(1 << 20, 100)
    assert DirectFile(path).read_into(BLOCK + 100, target[:-1])
    assert np.array_equal(target[:-1], bytes[BLOCK + 100 :][: 1 << 20])
    assert sizes == [(1 << 20) - BLOCK, BLOCK, BLOCK]  # the middle at once, and both ends


def test_a_file_that_ends_before_is_told(content: tuple[Path, np.ndarray]) -> None:
    for begin, size in ((SIZE - 10, 20), (SIZE + BLOCK, 3 * BLOCK), (SIZE - BLOCK, 2 * BLOCK)):
        assert not DirectFile(content[0]).read_into(begin, memory(size, begin)[:size])


def test_a_disk_without_direct_reads_is_asked_once(
    content: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(path: Path, flags: int) -> int:
        asked.append(path)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "O_DIRECT", 0o40000, raising=False)
    file = DirectFile(content[0])
    target = memory(10, 0)[:10]
    assert not file.read_into(0, target) and not file.read_into(0, target)
    assert len(asked) == 1
