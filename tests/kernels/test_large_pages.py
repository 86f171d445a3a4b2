import sys
from pathlib import Path

import pytest
import torch

from shoestring.kernels import large_pages


def _large_kilobytes(tensor: torch.Tensor) -> int:
    """In large pages of the mappings that hold a tensor, as the system counts them."""
    start, found, inside = tensor.data_ptr(), 0, False
    end = start + tensor.nbytes
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            first, last = (int(text, 16) for text in words[0].split("-"))
            inside = first < end and start < last
        elif inside and words[0] == "AnonHugePages:":
            found += int(words[1])
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other calls")
def test_what_is_gathered_is_in_large_pages_with_the_same_contents():
    tensor = torch.arange(4 * 1024**2, dtype=torch.float32)
    at = tensor.data_ptr()
    done = large_pages.gather([tensor])
    if not done:
        pytest.skip("this system has no large pages to give")
    assert done >= tensor.nbytes - 2 * 2**21 and _large_kilobytes(tensor) * 1024 >= done
    assert tensor.data_ptr() == at and torch.equal(tensor, torch.arange(len(tensor), dtype=torch.float32))


def test_views_of_one_storage_are_gathered_once_and_small_tensors_are_left():
    tensor = torch.ones(4 * 1024**2)
    assert large_pages.gather([tensor, tensor[100:]]) == large_pages.gather([tensor])
    assert large_pages.gather([torch.ones(1000)]) == 0
    assert large_pages.gather([torch.empty(0, 8), torch.empty(4, device="meta")]) == 0
