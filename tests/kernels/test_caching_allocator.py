"""The allocator's library against a plain model of its counts and limits, and its threads under sanitizers.

Torch's tensors of this process have nothing to do with it: it is a copy of the library.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.core.machine import rss_bytes
from shoestring.kernels import compiled
from tests.kernels.allocator_model import MOST, NEEDS_COMPILER, NEEDS_MOVES, PAGE, SMALL, Model


@NEEDS_COMPILER
@pytest.mark.parametrize("moves", [True, False])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), largest=st.sampled_from([3, 20, 200]))
def test_blocks_counts_and_limits_are_those_of_a_plain_model(moves: bool, seed: int, largest: int) -> None:
    """Steps come from `seed`: short runs, which are what hypothesis likes, leave no pieces."""
    random, model = Random(seed), Model(moves)
    for _ in range(200):
        match random.randrange(24):
            case 0:
                model.give_back()
            case 1 | 2:  # about as much as there is, or a little less or more
                near = [None, 0, model.used() + random.randrange(-3, 2 * largest) * PAGE + random.choice([0, 1, -1])]
                model.limit(*(None if n is None else max(n, 0) for n in random.choices(near, k=2)))
            case 3 | 4 | 5:
                model.take(random.randrange(1, SMALL))
            case step if step < 14 or not model.blocks:
                model.take(SMALL + PAGE * random.randrange(largest) + random.randrange(PAGE))
            case _:
                model.release(random.randrange(1000))
    model.limit(None, None)
    model.release_all()


@NEEDS_COMPILER
def test_memory_that_is_given_back_is_no_longer_resident() -> None:
    model = Model()
    for _ in range(9):
        model.take(MOST)
    while model.blocks[1:]:  # one stays, or the addresses would go as well
        model.release(1)
    kept = rss_bytes()
    model.give_back()
    assert kept - rss_bytes() > 0.9 * 8 * MOST
    model.release_all()


@NEEDS_COMPILER
def test_neighbours_that_are_free_serve_as_one_block() -> None:
    model = Model()
    for _ in range(8):
        model.take(MOST)
    for _ in range(6):
        model.release(1)
    fresh = model.counts().fresh
    model.take(6 * MOST)
    assert model.counts().fresh == fresh
    model.release_all()


@NEEDS_COMPILER
@NEEDS_MOVES
def test_pages_that_are_free_in_pieces_serve_as_one_block() -> None:
    model = Model()
    for _ in range(16):
        model.take(MOST)
    for which in range(8):
        model.release(which)  # every second
    before = model.counts()
    model.take(8 * MOST)
    now = model.counts()
    assert (now.fresh, now.held) == (before.fresh, before.held)
    model.release_all()  # nothing of the others was moved


@NEEDS_COMPILER
@NEEDS_MOVES
def test_moved_pages_never_make_too_many_mappings() -> None:
    model, pieces = Model(), 12_000

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("\n")

    before = mappings()
    for _ in range(3):
        moved = model.counts().moved
        blocks = [model.functions.memory_take(SMALL) for _ in range(2 * pieces)]
        for block in blocks[::100]:
            ctypes.memset(block, 1, 1)  # without any page the system would not tell mappings apart
        for block in blocks[::2]:
            model.functions.memory_release(block)
        whole = model.functions.memory_take(pieces * SMALL)
        assert model.counts().moved - moved > 4000 * SMALL
        assert 4000 < mappings() - before < 9000
        for block in [whole, *blocks[1::2]]:
            model.functions.memory_release(block)
        assert mappings() - before < 4200
    model.give_back()
    assert mappings() - before < 10


@NEEDS_COMPILER
@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_threads_and_forks_are_clean_under_sanitizers(sanitizer: str, tmp_path: Path) -> None:
    program = _stress_program(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    run = subprocess.run([program, "10"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@NEEDS_COMPILER
@pytest.mark.long
def test_where_addresses_are_limited_segments_are_as_large_as_their_blocks(tmp_path: Path) -> None:
    program = _stress_program(tmp_path)
    limited = ["sh", "-c", f"ulimit -v 800000; exec {program} 5"]  # kB: less than one segment elsewhere
    run = subprocess.run(limited, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def _stress_program(folder: Path, *flags: str) -> str:
    build = ["g++", "-std=c++20", "-O1", "-g", "-pthread", *flags, "-DWITHOUT_TORCH"]
    build += ["-I", str(Path(compiled.__file__).parent), str(Path(__file__).with_name("allocator_stress.cpp"))]
    made = subprocess.run([*build, "-o", str(folder / "stress")], capture_output=True, text=True)
    assert made.returncode == 0, f"g++ has no sanitizer here, or the program is wrong: {made.stderr}"
    return str(folder / "stress")
