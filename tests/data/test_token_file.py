"""Numbers on disk in checked blocks: what was written is read back, from anywhere; any damage is found where it is
read."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.core.errors import DataError
from shoestring.data import token_file
from shoestring.data.token_file import TokenFile, TokenWriter


def written(path, values, compress, parts=3):
    with open(path, "wb") as file:
        writer = TokenWriter(values.dtype, compress, file.write)
        for part in np.array_split(values, parts):
            writer.add(part)
        writer.close()
    return writer


def opened(path, writer, compress):
    places = np.array(writer.places) if compress else None
    return TokenFile(path, writer.dtype, writer.length, np.array(writer.sums, "<u4"), places)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 200), block=st.integers(1, 70), compress=st.sampled_from([0, 3]), parts=st.integers(1, 9),
    slices=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=5),
)  # fmt: skip
def test_any_slice_is_what_was_written(tmp_path, monkeypatch, count, block, compress, parts, slices):
    monkeypatch.setattr(token_file, "BLOCK", block)
    values = np.random.default_rng(count).integers(0, 2**16, count).astype("<u2")
    file = opened(tmp_path / "f", written(tmp_path / "f", values, compress, parts), compress)
    assert len(file) == count
    for low, high in [*slices, (0, count)]:
        assert np.array_equal(file[low:high], values[low:high])


@pytest.mark.parametrize("compress", [0, 3])
def test_a_flipped_bit_is_found_in_its_block_and_nowhere_else(tmp_path, monkeypatch, compress):
    monkeypatch.setattr(token_file, "BLOCK", 100)
    values = np.arange(350, dtype="<u2")
    writer = written(tmp_path / "f", values, compress)
    whole = (tmp_path / "f").read_bytes()
    for at in range(0, len(whole), 13):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        (tmp_path / "f").write_bytes(content)
        block = int(np.searchsorted(writer.places, at, "right")) - 1
        file = opened(tmp_path / "f", writer, compress)
        for number in range(4):
            if number != block:
                assert np.array_equal(file[100 * number : 100 * number + 50], values[100 * number : 100 * number + 50])
        with pytest.raises(DataError, match=f"block {block} is damaged"):
            file[100 * block : 100 * block + 1]


def test_a_block_that_claims_a_gigabyte_is_refused_before_room_is_made(tmp_path):
    values = np.arange(10, dtype="<u2")
    bomb = zstandard.ZstdCompressor().compress(bytes(2**30))
    (tmp_path / "f").write_bytes(bomb)
    sums = np.array([zlib.crc32(values.tobytes())], "<u4")
    file = TokenFile(tmp_path / "f", values.dtype, 10, sums, np.array([0, len(bomb)]))
    with pytest.raises(DataError, match="block 0 is damaged"):
        file[0:1]


def test_only_a_few_blocks_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "BLOCK", 10)
    values = np.arange(3000, dtype="<u2")
    file = opened(tmp_path / "f", written(tmp_path / "f", values, 3), 3)
    for n in range(0, 3000, 10):
        assert file[n : n + 10][0] == n
    assert len(file._kept) <= token_file._KEPT


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what counts as the process's own is read from Linux")
def test_what_was_read_of_a_plain_file_is_let_go_again(tmp_path, monkeypatch):
    monkeypatch.setattr(token_file, "_RESIDENT", 2**20)
    values = np.arange(2**22, dtype="<u2")
    file = opened(tmp_path / "f", written(tmp_path / "f", values, 0), 0)

    def resident():
        """Bytes of the file's mapping."""
        _, _, own = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "f"))
        return 1024 * int(re.search(r"^Rss:\s+(\d+) kB", own, re.MULTILINE)[1])

    whole = file[:]
    assert np.array_equal(whole, values) and resident() == values.nbytes
    for begin in range(0, len(values), 1000):
        assert np.array_equal(file[begin : begin + 1000], values[begin : begin + 1000])
    assert resident() < 2 * token_file._RESIDENT
    assert np.array_equal(whole, values), "a slice that is still held is read again"
