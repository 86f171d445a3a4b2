"""Stores of streamed layers: what they hold, and every way in which one can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from shoestring.core.direct import BLOCK
from shoestring.core.errors import ModelFileError, RunError
from shoestring.models.adapters import quantize_blocks
from shoestring.models.folder import load_model
from shoestring.models.weights import TensorFile, write_tensors
from shoestring.offload.config import QUANTIZED
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.model import open_streamed
from shoestring.offload.store import open_store, store_folder
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.offload import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model_folder(tmp_path: Path, **settings) -> Path:
    return tiny.save(tmp_path / "model", **{"dtype": torch.float32, **settings})


def made_store(folder: Path, format="int8") -> Path:
    store = open_store(folder, format)
    store.close()
    return store_folder(store.source, format)


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4", "nf4"])
def test_a_step_from_a_store_is_the_step_of_a_resident_model_with_those_weights(tmp_path, format):
    folder = model_folder(tmp_path)
    resident = load_model(folder)
    if format in QUANTIZED:
        quantize_blocks(resident, QUANTIZED[format])
    elif format == "bfloat16":
        for name, parameter in resident.named_parameters():
            if name.startswith("blocks.") and parameter.dim() == 2:
                parameter.data = parameter.data.bfloat16().float()
    streamed = open_streamed(folder, format)
    losses, gradients = [], []
    for kind, model in ((ResidentEngine, tiny.adapt(resident)), (StreamedEngine, tiny.adapt(streamed))):
        losses.append(kind.around(model, next_token).forward_backward(tiny.batches(2)).mean)
        gradients.append({name: p.grad for name, p in tiny.trained(model).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    streamed.close()


def test_a_store_is_made_once_and_found_again(tmp_path):
    folder = model_folder(tmp_path)
    said: list[str] = []
    open_store(folder, "int4", said.append).close()
    open_store(folder, "int4", said.append).close()
    assert len(said) == 1 and "int4" in said[0]


def test_a_model_that_has_the_format_already_is_not_copied(tmp_path, cache):
    store = open_store(model_folder(tmp_path), "float32")
    store.close()
    assert store.format == "source" and not (cache / "stores").exists()


def test_content_that_does_not_match_its_checksum_is_refused(tmp_path):
    folder = model_folder(tmp_path)
    file = made_store(folder) / "layer-00001.safetensors"
    with TensorFile(file) as content:
        place = content.infos["feed_forward.up.codes"].offset
    whole = bytearray(file.read_bytes())
    whole[place] ^= 1
    file.write_bytes(whole)
    model = open_streamed(folder, "int8")
    with pytest.raises(ModelFileError, match="(?s)layer-00001.*corrupted.*delete the folder"):
        with model.present(1):
            pass
    model.close()


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4", "nf4"])
def test_a_layer_of_a_store_is_read_at_once_and_in_place(tmp_path, monkeypatch, format):
    folder = model_folder(tmp_path)
    stream, read = TensorFile.stream, []

    def watched(file, offset, target):
        read.append((offset - target.data_ptr()) % BLOCK)
        stream(file, offset, target)

    monkeypatch.setattr(TensorFile, "stream", watched)
    model = open_streamed(folder, format)
    for number in (0, 1):
        with model.present(number):
            pass
    in_a_store = format != "float32"  # the model has that format itself, and its pieces lie apart
    assert (len(read) == model.stream.reads) == in_a_store
    if in_a_store:
        assert not any(read)
    model.close()


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "other weights"])
def test_a_broken_store_is_refused_with_the_way_out(tmp_path, damage):
    folder = model_folder(tmp_path)
    place = made_store(folder)
    file = place / "layer-00000.safetensors"
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 7)
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (place / "manifest.json").write_text("{")
    else:
        manifest = json.loads((place / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps({**manifest, "source": "0" * 64}))
    with pytest.raises(ModelFileError, match="(?s)store of streamed layers is broken.*delete the folder"):
        open_streamed(folder, "int8")


def test_a_model_that_changes_while_it_is_streamed_is_refused(tmp_path):
    folder = model_folder(tmp_path)
    model = tiny.adapt(open_streamed(folder))
    engine = StreamedEngine.around(model, next_token)
    engine.forward_backward(tiny.batches(1))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x00")
    os.utime(weights, ns=(1, 1))
    with pytest.raises(ModelFileError, match="weights were changed while they are used"):
        engine.forward_backward(tiny.batches(1))
    model.close()


def test_another_model_gets_another_store(tmp_path):
    folder = model_folder(tmp_path)
    first = made_store(folder)
    tiny.save(folder, family="qwen2", tied=False, dtype=torch.float32)
    assert made_store(folder) != first


def test_a_full_disk_leaves_no_half_store(tmp_path, cache, monkeypatch):
    folder = model_folder(tmp_path)
    written = []

    def failing(file, tensors, metadata):
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        written.append(file)
        write_tensors(file, tensors, metadata)

    monkeypatch.setattr("shoestring.offload.store.write_tensors", failing)
    with pytest.raises(RunError, match="disk is full|No space left"):
        open_store(folder, "int8")
    assert written and not any((cache / "stores").glob("*/layer-*")) and not list((cache / "stores").glob("[!.]*"))


@pytest.mark.parametrize("kind", ["reversible"])
def test_kinds_that_pass_more_than_x_between_layers_are_refused(tmp_path, kind):
    from shoestring.models.builder import build
    from shoestring.models.config import ModelConfig
    from shoestring.models.folder import save_model
    from tests.finetuning.tiny import SHAPE

    config = ModelConfig.model_validate({**SHAPE, "vocabulary": 61, "block": kind})
    save_model(build(config, seed=1), tmp_path / "other")
    with pytest.raises(ModelFileError, match="reversible blocks cannot be streamed"):
        open_streamed(tmp_path / "other")
