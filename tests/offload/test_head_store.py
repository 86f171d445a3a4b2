"""The int8 copy of a streamed head: what it holds, that it is made once, and every way in which it can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shoestring.core.errors import ModelFileError
from shoestring.models.folder import load_model
from shoestring.nn import frozen_head_loss
from shoestring.nn.quantized.int8 import quantize_rows
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.train.objective import next_token
from tests.offload import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(folder: Path, said: list[str] | None = None):
    return open_streamed(folder, "int8", compute="int8", say=None if said is None else said.append)


def copy_of(cache: Path) -> Path:
    (place,) = (cache / "stores").glob("*-int8-head")
    return place


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_heads_rows_rounded(tmp_path, cache, tied, dtype):
    folder = tiny.save(tmp_path / "model", tied=tied, dtype=dtype)
    opened(folder).close()
    tensors = load_file(copy_of(cache) / "head.safetensors")
    codes, scale = quantize_rows(load_model(folder).head.weight.detach())
    assert torch.equal(tensors["codes"], codes) and torch.equal(tensors["scale"], scale)


def test_it_is_made_once_and_only_where_it_is_used(tmp_path, cache):
    folder = tiny.save(tmp_path / "model", dtype=torch.float32)
    open_streamed(folder, "int8").close()
    assert not list((cache / "stores").glob("*-head"))
    said: list[str] = []
    for _ in range(2):
        opened(folder, said).close()
    assert len(said) == 1 and "int8 copy of the head" in said[0]


@pytest.mark.parametrize("rows", [7, 8192])
def test_codes_that_do_not_match_their_checksum_are_refused_in_the_first_pass(tmp_path, cache, monkeypatch, rows):
    monkeypatch.setattr(frozen_head_loss, "block_rows", lambda width: rows)
    folder = tiny.save(tmp_path / "model", dtype=torch.float32)
    opened(folder).close()
    file = copy_of(cache) / "head.safetensors"
    tensors = load_file(file)
    content = bytearray(file.read_bytes())
    content[content.index(tensors["codes"].numpy().tobytes()) + 100] ^= 1
    file.write_bytes(content)
    model = tiny.adapt(opened(folder))
    with pytest.raises(ModelFileError, match="(?s)head is broken.*checksum.*delete the folder"):
        StreamedEngine.around(model, next_token).forward_backward(tiny.batches(1))
    model.close()


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "other weights", "scales", "shape"])
def test_a_broken_copy_is_refused_with_the_way_out(tmp_path, cache, damage):
    folder = tiny.save(tmp_path / "model", dtype=torch.float32)
    opened(folder).close()
    place = copy_of(cache)
    file, manifest = place / "head.safetensors", place / "manifest.json"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 7)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text("[]")
    elif damage == "other weights":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "source": "0" * 64}))
    else:
        tensors = load_file(file)
        if damage == "scales":
            tensors["scale"][0] += 1
        else:
            tensors["codes"] = tensors["codes"][:, :-1].contiguous()
        save_file(tensors, file)
        size = file.stat().st_size
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "bytes": size}))
    with pytest.raises(ModelFileError, match="(?s)int8 copy of the head is broken.*delete the folder"):
        opened(folder)
