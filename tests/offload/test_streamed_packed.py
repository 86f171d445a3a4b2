"""Adapters beside linears that a folder has in few bits: resident and streamed, held to dense weights in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from shoestring.core.errors import BudgetError, ConfigError, ModelFileError
from shoestring.data.batch import IGNORED
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora import LoRALinear
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.quantized.config import PackedConfig
from shoestring.nn.quantized.packed import PackedLinear
from shoestring.nn.replace import replace_linears
from shoestring.offload import load as module
from shoestring.offload.engine import StreamedEngine
from shoestring.offload.load import close, load
from shoestring.offload.model import StreamedDecoder, open_streamed
from shoestring.train.objective import next_token
from shoestring.train.resident import ResidentEngine
from tests.finetuning import tiny as chat
from tests.models.gptq_folders import make_folder
from tests.offload import packed_folders, tiny
from tests.offload.test_streamed_step import run


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))


def stores(tmp_path: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in (tmp_path / "cache" / "stores").glob("*"))


class Written(nn.Module):
    """y = W·x + b + s·B·(A·x), written out."""

    def __init__(self, dense: nn.Module, adapter):
        super().__init__()
        self.dense, self.scale = dense.requires_grad_(False), adapter.scale
        self.lora_A, self.lora_B = (nn.Parameter(part.detach().clone()) for part in (adapter.lora_A, adapter.lora_B))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.scale * (x @ self.lora_A.t()) @ self.lora_B.t()


def judged(folder: Path, adapted, microbatches) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the same adapters beside dense weights, by autograd alone."""
    decoder = packed_folders.dense_of(folder).requires_grad_(False)
    for name, linear in adapted.named_modules():
        if isinstance(linear, LoRALinear):
            parent, _, last = name.rpartition(".")
            owner = decoder.get_submodule(parent)
            setattr(owner, last, Written(getattr(owner, last), linear.adapters["default"]))
    count = sum(int((batch.labels_BT != IGNORED).sum()) for batch in microbatches)
    total = 0.0
    for batch in microbatches:
        hidden = decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT)[0]
        logits = hidden @ decoder.embedding.weight.t()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), reduction="sum") / count
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


class RoundedRows(torch.autograd.Function):
    """To 255 steps from a row's largest value to its negative; going backward knows nothing of it."""

    @staticmethod
    def forward(ctx, x):
        step = x.abs().amax(-1, keepdim=True) / 127.5
        return (x / step).round().clamp(-128, 127) * step

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        return gradient


@pytest.mark.parametrize("dora", [False, True])
def test_beside_rounded_inputs_gradients_go_through_as_if_nothing_were_rounded(dora: bool) -> None:
    """Of one linear: in a model a bit less in an input can be a step more in what it is rounded to."""
    random = torch.Generator().manual_seed(0)
    dense = nn.Linear(24, 16, dtype=torch.float64)
    base = PackedLinear.from_linear(dense, PackedConfig(bits=8, group=None, activations="int8"))
    linear = LoRALinear.from_linear(base, LoRAConfig(rank=3, dora=dora), random=random)
    adapter = linear.adapters["default"]
    with torch.no_grad():
        adapter.lora_B.normal_(0, 0.1, generator=random)
    x = torch.randn(2, 5, 24, generator=random, dtype=torch.float64, requires_grad=True)
    weight, bias = base.weights(torch.float64), base.bias
    inner = RoundedRows.apply(x) @ weight.t() + adapter.scale * (x @ adapter.lora_A.t()) @ adapter.lora_B.t()
    if dora:
        lengths = (weight + adapter.scale * adapter.lora_B @ adapter.lora_A).norm(dim=1).detach()
        inner = inner * (adapter.magnitude / lengths)
    parts = [x, *adapter.parameters()]
    expected = torch.autograd.grad((inner + bias).square().sum(), parts)
    y = linear(x)
    assert_close(y, inner + bias)
    assert_close(torch.autograd.grad(y.square().sum(), parts), expected)


@pytest.mark.parametrize("layout", [layout for layout in packed_folders.LAYOUTS if layout != "activations"])
@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_gradients_are_those_of_the_weights_that_the_codes_stand_for(tmp_path: Path, layout: str, kind: str) -> None:
    folder = packed_folders.packed(tmp_path, layout)
    if kind == "resident":
        model = tiny.adapt(load_model(folder, dtype=torch.float64))
        engine = ResidentEngine.around(model, next_token)
    else:
        model = tiny.adapt(open_streamed(folder, dtype=torch.float64))
        engine = StreamedEngine.around(model, next_token)
    microbatches = tiny.batches(2)
    expected, gradients = judged(folder, model, microbatches)
    assert engine.forward_backward(microbatches).mean == pytest.approx(expected, rel=1e-10)
    found = {name.replace(".adapters.default", ""): p.grad for name, p in tiny.trained(model).items()}
    assert len(found) == 2 * 7 * tiny.LAYERS and all(bool(gradient.any()) for gradient in gradients.values())
    assert_close(found, gradients, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("layout", "kept"), [("four bits", []), ("zero points", ["packed-compressed-tensors-4"]),
                         ("activations", ["packed-compressed-tensors-8"]), ("gptq", ["packed-gptq-4"])],
)  # fmt: skip
@pytest.mark.parametrize("settings", [{}, {"dora": True}])
def test_streamed_steps_agree_with_resident_ones_in_every_bit(
    tmp_path: Path, layout: str, kept: list[str], settings: dict
) -> None:
    folder = packed_folders.packed(tmp_path, layout)
    resident = tiny.adapt(load_model(folder), **settings)
    resident.activation_checkpointing = "full"
    expected = run(ResidentEngine.around(resident, next_token), resident, 1, 3)
    for _ in range(2):  # the second time the copy is there
        streamed = tiny.adapt(open_streamed(folder), **settings)
        found = run(StreamedEngine.around(streamed, next_token), streamed, 1, 3)
        assert found[0] == expected[0] and stores(tmp_path) == kept
        for one, other in zip(found[1], expected[1], strict=True):
            assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        streamed.close()


def test_only_codes_and_scales_are_read(tmp_path: Path) -> None:
    folder = packed_folders.packed(tmp_path, "four bits")
    streamed = open_streamed(folder)
    streamed.stream.load(0)
    dense = sum(linear.in_features * linear.out_features for linear in streamed.blocks[0].modules()
                if hasattr(linear, "in_features"))  # fmt: skip
    assert streamed.stream.bytes_read % (dense // 2 + dense // 8 * 2) == 0  # half a byte a code, a scale for eight
    streamed.close()


def test_layers_that_differ_and_other_formats_are_refused(tmp_path: Path) -> None:
    folder = packed_folders.packed(tmp_path, "four bits")
    with pytest.raises(ConfigError, match="quantized already, and are streamed as they are, not in int4"):
        open_streamed(folder, "int4")
    name = "model.layers.1.mlp.up_proj"
    tensors = load_file(folder / "model.safetensors")
    for part in ("packed", "scale", "shape"):
        del tensors[f"{name}.weight_{part}"]
    tensors[f"{name}.weight"] = load_file(tmp_path / "plain" / "model.safetensors")[f"{name}.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder)
    with pytest.raises(ModelFileError, match="feed_forward.up is in few bits in some layers only"):
        open_streamed(folder)


def test_scales_of_several_formats_are_streamed_with_the_same_weights(tmp_path: Path) -> None:
    folder = packed_folders.packed(tmp_path, "four bits")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name] = tensors[name].float() * 1.001
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    streamed, tokens = open_streamed(folder), torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(streamed(tokens)[0], load_model(folder)(tokens)[0])
    assert stores(tmp_path) == ["packed-compressed-tensors-4"]
    streamed.close()


def test_the_same_files_read_another_way_are_another_store(tmp_path: Path) -> None:
    folder, tokens = packed_folders.packed(tmp_path, "gptq"), torch.arange(12).unsqueeze(0)
    found = []
    for form in ("gptq", "gptq_v2"):
        values = json.loads((folder / "config.json").read_text())
        values["quantization_config"]["checkpoint_format"] = form
        (folder / "config.json").write_text(json.dumps(values))
        streamed = open_streamed(folder)
        with torch.no_grad():
            found.append(streamed(tokens)[0])
            assert torch.equal(found[-1], load_model(folder)(tokens)[0])
        streamed.close()
    assert not torch.equal(*found)


@pytest.mark.parametrize("layout", ["four bits", "activations", "awq"])
def test_quantized_models_and_their_adapters_decode_within_a_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    plain = chat.chat_model(tmp_path / "plain")
    if layout in packed_folders.THEIRS:
        make_folder(plain, tmp_path / "chat", **packed_folders.THEIRS[layout])
        Tokenizer.load(plain).save(tmp_path / "chat")
    else:
        decoder = load_model(plain)
        config = PackedConfig(**packed_folders.OURS[layout])
        replace_linears(decoder, config, lambda name, _: name.startswith("blocks."))
        save_model(decoder, tmp_path / "chat", Tokenizer.load(plain))
    save_adapter(tiny.adapt(load_model(tmp_path / "chat")), tmp_path / "adapter", tmp_path / "chat")
    predict_use = module.predict_use

    def resident_is_too_large(config, use, machine, source, weights="source", slots=0):
        found = predict_use(config, use, machine, source, weights, slots)
        return found if slots else replace(found, tensors=(("all", 10**15),))

    monkeypatch.setattr(module, "predict_use", resident_is_too_large)
    options, tokens = {"temperature": 0.0, "max_tokens": 8}, torch.arange(30).view(2, 15)
    texts = set()
    for place in ("chat", "adapter"):
        streamed, resident = load(tmp_path / place, memory="16GB"), load(tmp_path / place)
        assert isinstance(streamed.decoder, StreamedDecoder) and not isinstance(resident.decoder, StreamedDecoder)
        with torch.no_grad():
            ours, theirs = (m.decoder.head(m.decoder(tokens)[0]) for m in (streamed, resident))
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert streamed.generate(["1+1?", "x"], **options) == resident.generate(["1+1?", "x"], **options)
        texts.add(ours.sum().item())
        close(streamed)
    assert len(texts) == 2  # the adapter changes something
    with pytest.raises(BudgetError, match="too little to decode with this model"):
        load(tmp_path / "chat", memory="1MB")
