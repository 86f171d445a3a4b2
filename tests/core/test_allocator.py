"""Freed tensors go back to the system, so that memory is the sum of what is held."""

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes, sys
import torch
from shoestring.core.allocator import map_large_tensors
from shoestring.core.machine import rss_bytes
told = map_large_tensors() if sys.argv[1] == "mapped" else None
for _ in range(2):  # glibc raises its threshold when a large mapped block is freed
    torch.ones(30_000_000 // 4).sum()
held = [torch.ones(1_000_000) for _ in range(40)]
before = rss_bytes()
del held[::2]
print(told, (before - rss_bytes()) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_every_second_tensor_freed_leaves_half_the_memory():
    told, freed = _run("mapped")
    if told == "True":  # glibc
        assert freed > 70  # 20 tensors of 4 MB
        assert _run("plain")[1] < 40  # the control: without it the holes stay resident


def _run(how: str) -> tuple[str, float]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True, check=True)
    told, freed = done.stdout.split()
    return told, float(freed)
