"""An adapter as a GGUF LoRA changes the base's matrices, as llama.cpp would add it, by what merging it changes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.export.job import export_gguf
from shoestring.models.adapters import DEFAULT, attach, attach_to, merge, switch
from shoestring.models.decoder import Decoder
from shoestring.models.families.registry import family_of
from shoestring.models.folder import load_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.export.folders import saved
from tests.models.gguf.gguf_files import gguf_name, permute


def shaken(decoder: Decoder) -> Decoder:
    """Away from the start, where B is zero."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    return decoder


def adapted(base: Path, folder: Path, config: LoRAConfig, modules: list[str] | None = None) -> Decoder:
    """-> the base with the adapter that is saved in `folder`."""
    decoder = load_model(base)
    attach(decoder, config, seed=1, modules=modules)
    save_adapter(shaken(decoder), folder, base)
    return decoder


def added(path: Path) -> dict[str, np.ndarray]:
    """What llama.cpp adds to each of the base's matrices: alpha / rank · B A."""
    reader = gguf.GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    parts = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")]
    assert len(parts) == 2 * len(names)
    found = {}
    for name in names:
        first, second = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
        found[name] = alpha / len(first) * second @ first
    return found


def changed(base: Path, decoder: Decoder) -> dict[str, np.ndarray]:
    """What merging changes, under llama.cpp's names, q and k of llama as llama.cpp turns them."""
    family = family_of(decoder.config)
    before = dict(load_model(base, dtype=torch.float64).named_parameters())
    found = {}
    for name, after in merge(decoder.double()).named_parameters():
        difference = (after - before[name]).detach().numpy()
        if np.abs(difference).max() > 0:
            heads = {"query": decoder.config.attention.heads, "key": decoder.config.attention.kv_heads}
            module = name.split(".")[-2]
            if family.model_type == "llama" and module in heads:
                difference = permute(difference, heads[module])
            found[gguf_name(family.tensor_name(name))] = difference
    return found


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_the_file_adds_what_merging_adds(arch: str, tmp_path: Path) -> None:
    base = saved(tmp_path / "base", arch)
    decoder = adapted(base, tmp_path / "adapter", LoRAConfig(rank=4, alpha=10))
    done = export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf")
    found, wanted = added(done.file), changed(base, decoder)
    assert found.keys() == wanted.keys() and len(found) == 14
    for name, difference in wanted.items():
        np.testing.assert_allclose(found[name], difference, rtol=1e-4, atol=1e-5, err_msg=name)
    fields = gguf.GGUFReader(done.file).fields
    keys = ("general.architecture", "general.type", "adapter.type")
    assert [fields[key].contents() for key in keys] == [arch, "adapter", "lora"]
    assert done.formats == {"F32": 28} and not done.beside


@pytest.mark.parametrize("stabilized", [False, True])
def test_ranks_and_alphas_of_modules_are_multiplied_in(stabilized: bool, tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    decoder = load_model(base)
    attach(decoder, LoRAConfig(rank=4, alpha=10, rank_stabilized=stabilized), seed=1, modules=["query", "up"])
    other = LoRAConfig(rank=2, alpha=3, rank_stabilized=stabilized)
    attach_to(decoder, "blocks.1.feed_forward.down", other, DEFAULT, torch.Generator().manual_seed(2))
    switch(decoder, DEFAULT)
    save_adapter(shaken(decoder), tmp_path / "adapter", base)
    found = added(export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf").file)
    wanted = changed(base, decoder)
    assert found.keys() == wanted.keys() and "blk.1.ffn_down.weight" in found and "blk.0.ffn_down.weight" not in found
    for name, difference in wanted.items():
        np.testing.assert_allclose(found[name], difference, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_adapter_in_sixteen_bits_is_near_and_in_fewer_is_refused(tmp_path: Path) -> None:
    base = saved(tmp_path / "base")
    decoder = adapted(base, tmp_path / "adapter", LoRAConfig(rank=4, alpha=10))
    found = added(export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf", "f16").file)
    for name, difference in changed(base, decoder).items():
        np.testing.assert_allclose(found[name], difference, rtol=0, atol=2e-3 * np.abs(difference).max())
    with pytest.raises(ConfigError, match="an adapter is not written in q8_0"):
        export_gguf(tmp_path / "adapter", tmp_path / "small.gguf", "q8_0")


def test_dora_is_refused_by_name_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted(saved(tmp_path / "base"), tmp_path / "adapter", LoRAConfig(rank=4, dora=True))
    assert main(["export", str(tmp_path / "adapter"), "--out", str(tmp_path / "lora.gguf")]) == 2
    said = capsys.readouterr().err
    assert "this adapter is DoRA, and llama.cpp has LoRA alone" in said and "shoestring merge" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_an_adapter_of_another_model_is_told_by_its_shapes(tmp_path: Path) -> None:
    adapted(saved(tmp_path / "base"), tmp_path / "adapter", LoRAConfig(rank=4))
    other = saved(tmp_path / "other", hidden_size=128)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tmp_path / "base"), str(other)))
    with pytest.raises(ModelFileError, match=r"has shape \[.*\], and the base's matrix \[.*\]"):
        export_gguf(tmp_path / "adapter", tmp_path / "lora.gguf")
