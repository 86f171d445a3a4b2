"""Weights as they are kept for decoding: loaded by name, refused in a sentence, the same tokens on every way."""

import json
from pathlib import Path

import pytest
import torch

from shoestring.cli.main import main
from shoestring.core.errors import ConfigError
from shoestring.evaluate.perplexity import perplexity
from shoestring.generate import loading
from shoestring.generate.config import SamplingConfig
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.request import Request
from shoestring.generate.scheduler import Scheduler
from shoestring.kernels import decode as kernels
from shoestring.kernels.decode import FloatMatrix, weights_of
from shoestring.models import decoding_weights
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.decoding_weights import kept_as, load_for_decoding
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn import native_stack
from shoestring.nn.lora_config import LoRAConfig
from shoestring.nn.native_stack import NativeStack
from shoestring.nn.quantized.decoding import DecodingHead, DecodingLinear, QuickHead
from shoestring.nn.stack import SequentialStack
from tests.generate.tiny import byte_tokenizer, decode, decoder_of, finish, strengthened, tiny_decoder
from tests.models.gguf.gguf_files import quantize_model, tiny_model, write_gguf

CONFIG = {
    "vocabulary": 61, "width": 32, "context": 64, "feed_forward": {"width": 64},
    "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_width": 8},
}  # fmt: skip
KINDS = ["file", "float32", "bf16", "int8", "int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_model(tiny_decoder(layers=3), folder, byte_tokenizer())
    return folder


@pytest.mark.parametrize("weights", KINDS)
def test_a_folder_is_loaded_with_its_weights_kept_as_asked(folder, weights):
    model, plain = LanguageModel.load(folder, weights=weights), load_model(folder)
    assert model.weights == weights
    exact = {"file": 0, "float32": 0, "bf16": 4e-3, "int8": 1e-2, "int4": 0.2}[weights]
    for name, linear in plain.named_modules():
        if isinstance(linear, torch.nn.Linear):
            mine = model.decoder.get_submodule(name)
            mine = mine.weight if isinstance(mine, torch.nn.Linear) else mine.to_linear().weight
            assert (mine - linear.weight).abs().max() <= exact * linear.weight.abs().max()
    assert isinstance(model.decoder.head, QuickHead if exact == 0 else DecodingHead)
    text = model.generate("Once", temperature=0, max_tokens=12)
    assert weights not in ("file", "float32") or text == LanguageModel.load(folder).generate(
        "Once", temperature=0, max_tokens=12
    )


def test_file_keeps_the_half_precision_of_a_folder(tmp_path):
    decoder = tiny_decoder().bfloat16()
    save_model(decoder, tmp_path / "model", byte_tokenizer())
    kept = LanguageModel.load(tmp_path / "model", weights="file").decoder
    matrix = kept.blocks[0].attention.query.matrix
    assert isinstance(matrix, FloatMatrix) and torch.equal(matrix.values, decoder.blocks[0].attention.query.weight)


@pytest.mark.parametrize(("weights", "count"), [
    ("int4", 10), ("float32", 10), *(pytest.param(w, 200, marks=pytest.mark.long) for w in ("int4", "int8", "bf16")),
])  # fmt: skip
def test_batched_and_continuously_admitted_texts_are_those_decoded_alone(weights, count):
    config = {**CONFIG, "layers": 3}
    decoder = kept_as(strengthened(build(ModelConfig.model_validate(config), seed=0).eval(), 10), weights)
    random = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 30, (count,), generator=random).tolist()
    prompts = [torch.randint(61, (length,), generator=random).tolist() for length in lengths]
    sampling = SamplingConfig(max_tokens=8, temperature=0)
    alone = [decode(decoder, [prompt], sampling)[0][0] for prompt in prompts]
    together, _ = decode(decoder, prompts, sampling)
    few, _ = decode(decoder, prompts, sampling, slots=3, prefill_tokens=7)
    scheduler = Scheduler(decoder, decoder.new_cache(4, 40))
    for prompt in prompts[:2]:
        scheduler.add(Request(prompt, sampling))
    first = scheduler.step()
    for prompt in prompts[2:]:
        scheduler.add(Request(prompt, sampling))
    late, _ = finish(scheduler, len(prompts))
    for event in first:
        late[event.request].insert(0, event.token)
    assert isinstance(decoder._stack, NativeStack)
    same = [sum(mine == theirs for mine, theirs in zip(way, alone, strict=True)) for way in (together, few, late)]
    assert same == [len(prompts)] * 3


def test_an_adapter_is_merged_before_its_weights_are_rounded(folder, tmp_path):
    decoder = load_model(folder)
    attach(decoder, LoRAConfig(rank=2))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    save_adapter(decoder, tmp_path / "adapter", folder)
    exact, kept = LanguageModel.load(tmp_path / "adapter"), LanguageModel.load(tmp_path / "adapter", weights="int8")
    wanted = exact.decoder.blocks[0].attention.query.weight
    found = weights_of(kept.decoder.blocks[0].attention.query.matrix)
    assert 0 < (found - wanted).abs().max() < 1e-2 * wanted.abs().max()
    with pytest.raises(ConfigError, match="adapter is merged"):
        LanguageModel.load(tmp_path / "adapter", weights="file")


def test_a_gguf_file_is_decoded_from_its_own_blocks(tmp_path):
    made = tiny_model("llama")
    quantize_model(made, "Q4_1")
    path = write_gguf(tmp_path / "m.gguf", made, "Q4_1")
    model, plain = LanguageModel.load(path, weights="file"), LanguageModel.load(path)
    assert model.folder == path and model.stop_tokens == plain.stop_tokens
    weight = plain.decoder.blocks[1].feed_forward.down.weight
    torch.testing.assert_close(weights_of(model.decoder.blocks[1].feed_forward.down.matrix), weight.detach())
    assert isinstance(model.generate("The quick", max_tokens=5, temperature=0), str)


@pytest.mark.parametrize("weights", ["source", "int8"])
def test_keys_and_values_may_be_kept_in_int8(folder, weights):
    plain, kept = (LanguageModel.load(folder, weights=weights, cache=cache) for cache in ("source", "int8"))
    one, other = (model.decoder.new_cache(2, 40) for model in (plain, kept))
    assert other.bytes_per_token() == one.bytes_per_token() * (8 + 4) / (4 * 8)  # heads of 8, and a scale
    prompts = ["Once", "upon a time, and then"]
    texts = [model.generate(prompts, temperature=0, max_tokens=12) for model in (plain, kept)]
    alone = [kept.generate(prompt, temperature=0, max_tokens=12) for prompt in prompts]
    assert alone == texts[1] and kept.cache == "int8"
    tokens = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        exact, near = (m.decoder(tokens, cache=m.decoder.new_cache(1, 30))[0] for m in (plain, kept))
    assert 0 < (near - exact).norm() < 0.03 * exact.norm()


def test_other_caches_are_not_kept_in_int8(tmp_path):
    save_model(decoder_of("mla").float(), tmp_path / "model", byte_tokenizer())
    with pytest.raises(ConfigError, match="grouped-query"):
        LanguageModel.load(tmp_path / "model", cache="int8")


@pytest.mark.parametrize(("options", "said"), [
    ({"weights": "int3"}, "weights 'int3'"),
    ({"weights": "nf4"}, "weights 'nf4'"),
    ({"cache": "int4"}, "cache 'int4'"),
    ({"weights": "int4", "dtype": "bfloat16"}, "both say"),
    ({"weights": "int4", "device": "cuda"}, "not on cuda"),
])  # fmt: skip
def test_what_cannot_be_served_is_said_before_anything_is_read(options, said):
    with pytest.raises(ConfigError, match=said):
        LanguageModel.load("no such model", **options)


def test_without_a_compiler_that_is_said_and_the_text_is_the_same(folder, monkeypatch):
    said, wanted = [], LanguageModel.load(folder, weights="bf16").generate("Once", temperature=0, max_tokens=6)
    for module in (loading, kernels, native_stack, decoding_weights):
        monkeypatch.setattr(module, "decode_kernels", lambda: None)
    model = LanguageModel.load(folder, weights="bf16", say=said.append)
    assert [sentence for sentence in said if "compiler" in sentence] == said[:1]
    assert type(model.decoder._stack) is SequentialStack
    assert model.generate("Once", temperature=0, max_tokens=6) == wanted


def test_where_there_is_a_gpu_blocks_are_on_the_cpu_and_that_is_said(folder, monkeypatch):
    said, seen = [], []
    monkeypatch.setattr(loading, "resolve_device", lambda device: torch.device("cuda" if device == "auto" else device))
    monkeypatch.setattr(loading, "load_for_decoding", lambda at, weights: seen.append(weights) or load_model(at))
    LanguageModel.load(folder, weights="int8", say=said.append)
    assert seen == ["int8"] and "cpu" in said[0]


def test_perplexity_is_that_of_the_weights_as_they_are_kept(folder, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small fox that wanted to read. " * 6, encoding="utf-8")
    found = {}
    for weights in ("float32", "int8", "int4"):
        assert main(["perplexity", str(folder), "--data", str(text), "--weights", weights, "--json"]) == 0
        found[weights] = json.loads(capsys.readouterr().out)["loss"]
    assert found["float32"] == pytest.approx(perplexity(folder, text).loss, abs=1e-5)
    assert found["float32"] != found["int8"] != found["int4"]
    assert found["int8"] == pytest.approx(found["float32"], abs=0.01)
    assert found["int4"] == pytest.approx(found["float32"], abs=0.2)
    assert main(["perplexity", str(folder), "--data", str(text), "--weights", "int3"]) == 2


def test_a_quantized_folder_is_decoded_dense_and_from_its_file_in_blocks(tmp_path: Path) -> None:
    from shoestring.compression.quantize.job import quantize
    from shoestring.nn.quantized.packed import PackedLinear

    config = ModelConfig.model_validate({
        "vocabulary": 300, "width": 64, "layers": 2, "context": 64, "initializer_range": 0.2,
        "attention": {"heads": 2, "kv_heads": 1, "head_width": 32}, "feed_forward": {"width": 96},
    })  # fmt: skip
    save_model(build(config, seed=0), tmp_path / "dense")
    tokens_BT = torch.arange(20).unsqueeze(0)

    def logits(folder: Path, weights: str | None) -> torch.Tensor:
        decoder = load_model(folder) if weights is None else load_for_decoding(folder, weights)
        with torch.no_grad():
            return decoder.head(decoder(tokens_BT)[0])

    for name, settings in (("four", {"bits": 4}), ("eight", {"bits": 8, "group": 0, "activations": "int8"})):
        folder = tmp_path / name
        quantize(tmp_path / "dense", folder, method="rtn", **settings)
        exact = logits(folder, None)
        torch.testing.assert_close(logits(folder, "float32"), exact, rtol=0, atol=1e-4)
        found = logits(folder, "file")
        assert 0 < (found - exact).std() < 0.05 * exact.std()
        kinds = {type(module) for module in load_for_decoding(folder, "file").modules()}
        assert DecodingLinear in kinds and PackedLinear not in kinds
        assert (logits(folder, "int8") - exact).std() < 0.05 * exact.std()
