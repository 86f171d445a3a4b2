import pytest
import torch

from shoestring.core.device import check_memory_budget, resolve_device, resolve_dtype
from shoestring.core.errors import ConfigError


def test_names_become_torch_objects():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert resolve_dtype("bf16") is resolve_dtype("bfloat16") is torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "tpu", ""])
def test_an_unknown_device_lists_the_known(name):
    with pytest.raises(ConfigError, match="expected one of: auto, cpu"):
        resolve_device(name)


def test_an_absent_gpu_is_said_plainly(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda is not usable"):
        resolve_device("cuda")


def test_an_unknown_number_format_lists_the_known():
    with pytest.raises(ConfigError, match="expected one of: float32"):
        resolve_dtype("int3")


def test_a_memory_budget_is_of_a_cpu():
    check_memory_budget(None, torch.device("cuda"))
    check_memory_budget(10**9, torch.device("cpu"))
    for kind in ("cuda", "mps"):
        with pytest.raises(ConfigError, match=f"on {kind} a model lies in the GPU's"):
            check_memory_budget(10**9, torch.device(kind))
