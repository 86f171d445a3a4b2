"""The torch that serves."""

import re
from pathlib import Path

import pytest
import torch

from shoestring.core import torch_features
from shoestring.core.device import resolve_device
from shoestring.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def version(monkeypatch):
    """Makes torch say that it is another one."""
    torch_features.require.cache_clear()
    yield lambda number: monkeypatch.setattr(torch, "__version__", number)
    torch_features.require.cache_clear()


def test_a_torch_that_is_too_old_is_refused_by_name(version):
    version("2.10.1+cu128")
    with pytest.raises(ConfigError, match=r"torch 2.10.1\+cu128 is too old: 2.11 or newer") as refused:
        resolve_device("cpu")
    assert refused.value.hint == 'pip install "torch>=2.11"'


@pytest.mark.parametrize("number", ["2.11.0", "2.13.0+cpu", "3.0.0a0+git1234", "a build of my own"])
def test_newer_ones_serve(number, version):
    version(number)
    assert resolve_device("cpu") == torch.device("cpu")


def test_the_package_asks_for_the_oldest_that_serves():
    needed = re.search(r'"torch>=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert tuple(map(int, needed.groups())) == torch_features.OLDEST


def test_flex_attention_is_for_cuda_with_triton(monkeypatch):
    torch_features.flex_attention.cache_clear()
    for found, expected in ((object(), True), (None, False)):
        monkeypatch.setattr(torch_features.importlib.util, "find_spec", lambda name, found=found: found)
        assert torch_features.flex_attention.__wrapped__(torch.device("cuda")) is expected
        assert not any(torch_features.flex_attention.__wrapped__(torch.device(kind)) for kind in ("cpu", "mps", "meta"))
