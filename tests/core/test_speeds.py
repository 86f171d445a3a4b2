import json

import pytest

from shoestring.core import speeds


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    return tmp_path / "machine.json"


def test_the_matrix_peak_is_measured_once_and_kept(cache, monkeypatch):
    measured = []
    monkeypatch.setattr(speeds, "_measure_matrix_peak", lambda dtype, device: measured.append(dtype) or 5e9)
    assert speeds.matrix_peak("float32") == speeds.matrix_peak("float32") == 5e9
    assert len(measured) == 1
    speeds.matrix_peak("bfloat16")
    assert len(measured) == 2 and len(json.loads(cache.read_text())) == 2
    speeds.matrix_peak("float32", refresh=True)
    assert len(measured) == 3


def test_another_torch_or_thread_count_is_measured_anew(cache, monkeypatch):
    import torch

    monkeypatch.setattr(speeds, "_measure_matrix_peak", lambda dtype, device: 5e9)
    speeds.matrix_peak()
    monkeypatch.setattr(torch, "__version__", "99.0")
    speeds.matrix_peak()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    speeds.matrix_peak()
    assert len(json.loads(cache.read_text())) == 3


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": "y"}'])
def test_a_damaged_cache_only_costs_time(cache, monkeypatch, content):
    cache.write_text(content)
    monkeypatch.setattr(speeds, "_measure_matrix_peak", lambda dtype, device: 5e9)
    assert speeds.matrix_peak() == 5e9
    assert 5e9 in json.loads(cache.read_text()).values()


def test_a_real_peak_is_plausible(cache):
    import torch

    # Any processor of this century does 0.1 to 100,000 GFLOP/s in float32.
    assert 1e8 < speeds._measure_matrix_peak(torch.float32, torch.device("cpu"), seconds=0.02) < 1e14


def test_a_disk_is_read_and_nothing_is_left_behind(tmp_path):
    assert speeds.disk_read_speed(tmp_path, size=2_000_000) > 1e5
    assert list(tmp_path.iterdir()) == []
