"""peft is the judge: same logits both ways, and training that goes the same way for twenty steps in float64."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from shoestring.core.errors import ModelFileError
from shoestring.models.adapters import adapted_linears, attach, merge, switch, without_adapters
from shoestring.models.decoder import Decoder
from shoestring.models.folder import load_model, save_model
from shoestring.models.peft_config import base_fields, read_adapter_config
from shoestring.models.peft_folder import find_base, load_adapted, load_adapter, merge_folder, save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.generate.tiny import byte_tokenizer
from tests.models.tiny_families import FAMILIES, make_model, norms_in_float64, save

KINDS = {
    "lora": {"r": 4, "lora_alpha": 10},
    "rank-stabilised": {"r": 4, "lora_alpha": 10, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True},
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [(family, kind) for family in FAMILIES for kind in KINDS]


def tokens(rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (rows, 11), generator=torch.Generator().manual_seed(seed))


def our_logits(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    return decoder.head(decoder(tokens_BT)[0])


def ours(kind: str) -> LoRAConfig:
    values = KINDS[kind]
    return LoRAConfig(
        rank=values["r"], alpha=values["lora_alpha"], dora=values.get("use_dora", False),
        rank_stabilized=values.get("use_rslora", False),
    )  # fmt: skip


def shake(parameters, seed: int = 3) -> None:
    """Away from the start, where B is zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=random, dtype=parameter.dtype) * 0.1)


def theirs(base: Path, kind: str, **more) -> peft.PeftModel:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    norms_in_float64(model)
    config = peft.LoraConfig(target_modules=MODULES, task_type="CAUSAL_LM", **{**KINDS[kind], **more})
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_our_folder_gives_the_same_logits_in_peft(family: str, kind: str, tmp_path: Path) -> None:
    base = save(family, tmp_path / "base")
    decoder = load_model(base, dtype=torch.float64).eval()
    attach(decoder, ours(kind), seed=1)
    shake(p for p in decoder.parameters() if p.requires_grad)
    save_adapter(decoder, tmp_path / "adapter", base)
    judge = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float64).eval()
    norms_in_float64(judge)
    with torch.no_grad():
        adapted = our_logits(decoder, tokens())
        assert_close(adapted, judge(tokens()).logits, rtol=1e-10, atol=1e-10)
        with without_adapters(decoder):
            assert not torch.allclose(our_logits(decoder, tokens()), adapted, atol=1e-3)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_pefts_folder_gives_the_same_logits_here_attached_and_merged(family: str, kind: str, tmp_path: Path) -> None:
    base = save(family, tmp_path / "base")
    judge = theirs(base, kind).eval()
    shake(p for p in judge.parameters() if p.requires_grad)
    judge.save_pretrained(tmp_path / "adapter")
    decoder, found = load_adapted(tmp_path / "adapter", dtype=torch.float64)
    assert found == base
    with torch.no_grad():
        expected = judge(tokens()).logits
        assert_close(our_logits(decoder.eval(), tokens()), expected, rtol=1e-10, atol=1e-10)
        merge(decoder)
        assert not adapted_linears(decoder)
        assert_close(our_logits(decoder, tokens()), expected, rtol=1e-9, atol=1e-9)
        save_model(decoder, tmp_path / "merged")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64)
        norms_in_float64(plain)
        assert_close(plain(tokens()).logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_loss_gradients_and_weights_stay_equal_to_pefts_for_twenty_steps(
    family: str, kind: str, tmp_path: Path
) -> None:
    from shoestring.data.batch import Batch
    from shoestring.train.objective import next_token
    from shoestring.train.optimizer import build_optimizer
    from shoestring.train.optimizer_config import AdamWConfig
    from shoestring.train.resident import ResidentEngine

    base = save(family, tmp_path / "base")
    judge = theirs(base, kind).train()
    judge.save_pretrained(tmp_path / "start")
    decoder, _ = load_adapted(tmp_path / "start", dtype=torch.float64)
    decoder.train()
    settings = AdamWConfig(learning_rate=5e-3, weight_decay=0.0)
    our_optimizer = build_optimizer(settings, decoder)
    trained = [p for p in judge.parameters() if p.requires_grad]
    their_optimizer = torch.optim.AdamW(
        trained, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon, weight_decay=0.0
    )
    engine = ResidentEngine.around(decoder, next_token)
    positions_BT, segments_BT = torch.arange(10).expand(2, -1), torch.zeros(2, 10, dtype=torch.int64)
    for number in range(20):
        text = tokens(seed=number)
        batch = Batch(text[:, :-1], text[:, 1:].clone(), positions_BT, segments_BT)
        batch.labels_BT[:, :3] = -100
        loss = engine.forward_backward([batch])
        logits = judge(input_ids=batch.tokens_BT).logits
        expected = F.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten())
        expected.backward()
        # Our loss's value is a sum in float32; its gradients are in float64.
        assert_close(loss.mean, expected.item(), rtol=1e-6, atol=1e-6)
        judged = _by_name(judge, gradients=True)
        for name, gradient in _ours_by_name(decoder, gradients=True).items():
            assert_close(gradient, judged[name], rtol=1e-6, atol=1e-6 * float(judged[name].abs().max()))
        for optimizer in (our_optimizer, their_optimizer):
            optimizer.step()
            optimizer.zero_grad()
    judged, mine = _by_name(judge), _ours_by_name(decoder)
    assert mine.keys() == judged.keys() and len(mine) == len(trained)
    for name, weight in mine.items():
        assert_close(weight, judged[name], rtol=1e-6, atol=1e-6)
    assert all(bool(weight.any()) for name, weight in mine.items() if "lora_B" in name)


def _by_name(judge: peft.PeftModel, gradients: bool = False) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in judge.named_parameters():
        if parameter.requires_grad:
            name = re.sub(r"\.default(\.weight)?$", "", name.replace(".default.weight", ""))
            found[name] = parameter.grad if gradients else parameter.detach()
    return found


def _ours_by_name(decoder: Decoder, gradients: bool = False) -> dict[str, torch.Tensor]:
    from shoestring.models.families.registry import family_of

    family, found = family_of(decoder.config), {}
    parts = {"lora_A": "lora_A", "lora_B": "lora_B", "magnitude": "lora_magnitude_vector"}
    for linear, module in adapted_linears(decoder).items():
        theirs = family.tensor_name(f"{linear}.weight").removesuffix(".weight")
        for part, parameter in module.adapters["default"].named_parameters():
            found[f"base_model.model.{theirs}.{parts[part]}"] = parameter.grad if gradients else parameter.detach()
    return found


def test_patterns_of_rank_and_alpha_are_read_and_written_as_pefts(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}}
    judge = theirs(base, "rank-stabilised", **patterns).eval()
    shake(p for p in judge.parameters() if p.requires_grad)
    judge.save_pretrained(tmp_path / "adapter")
    decoder, _ = load_adapted(tmp_path / "adapter", dtype=torch.float64)
    with torch.no_grad():
        expected = judge(tokens()).logits
        assert_close(our_logits(decoder.eval(), tokens()), expected, rtol=1e-10, atol=1e-10)
    save_adapter(decoder, tmp_path / "again", base)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    norms_in_float64(again)
    with torch.no_grad():
        assert_close(again(tokens()).logits, expected, rtol=1e-10, atol=1e-10)


def test_several_adapters_are_switched_and_set_aside(tmp_path: Path) -> None:
    base = save("qwen2", tmp_path / "base")
    logits = []
    for seed, kind in enumerate(("lora", "dora")):
        decoder = load_model(base, dtype=torch.float64).eval()
        attach(decoder, ours(kind), seed, modules=["q_proj", "down"] if seed else None)
        shake((p for p in decoder.parameters() if p.requires_grad), seed)
        save_adapter(decoder, tmp_path / kind, base)
        logits.append(our_logits(decoder, tokens()).detach())
    decoder = load_model(base, dtype=torch.float64).eval()
    alone = our_logits(decoder, tokens()).detach()
    load_adapter(decoder, tmp_path / "lora", "one")
    load_adapter(decoder, tmp_path / "dora", "two")
    for name, expected in (("one", logits[0]), ("two", logits[1]), (None, alone), ("one", logits[0])):
        switch(decoder, name)
        assert_close(our_logits(decoder, tokens()), expected, rtol=1e-12, atol=1e-12)
        trained = {n.split("adapters.")[1].split(".")[0] for n, p in decoder.named_parameters() if p.requires_grad}
        assert trained == ({name} if name else set())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("peft_type", "LOHA", "peft_type"),
        ("bias", "all", "bias"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("init_lora_weights", "pissa", "changes the base"),
        ("r", 5, "has rank 4"),
        ("r", "many", "not a usable adapter config"),
        ("r", 0, "config: r: expected a number above 0, found 0$"),
        ("lora_alpha", 0, "config: lora_alpha: expected a number above 0, found 0.0$"),
        ("lora_dropout", 1, "config: lora_dropout: expected a number below 1, found 1.0$"),
        ("use_dora", True, "lora_magnitude_vector is missing"),
        ("base_model_name_or_path", None, "does not name"),
        ("base_model_name_or_path", "gone/away", "not there"),
    ],
)
def test_an_adapter_that_we_do_not_compute_is_refused(field: str, value, said: str, tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    decoder = load_model(base, dtype=torch.float64)
    attach(decoder, ours("lora"))
    save_adapter(decoder, tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(ModelFileError, match=said):
        load_adapted(tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save("qwen3", tmp_path / "base")
    attach(decoder := load_model(base), ours("lora"))
    save_adapter(decoder, tmp_path / "adapter", base)
    with pytest.raises(ModelFileError, match="belongs to another model"):
        load_adapter(load_model(save("llama", tmp_path / "other")), tmp_path / "adapter")


def test_the_config_that_is_written_is_read_back(tmp_path: Path) -> None:
    config = LoRAConfig(rank=3, alpha=1.5, dropout=0.25, rank_stabilized=True, dora=True)
    decoder = load_model(save("llama", tmp_path / "base"))
    attach(decoder, config, modules=["gate_proj"])
    save_adapter(decoder, tmp_path / "adapter", "OWNER/NAME")
    read = read_adapter_config(tmp_path / "adapter")
    assert read.lora == config and read.base == "OWNER/NAME"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"] == ["gate_proj"]


def bfloat16_base(folder: Path) -> Path:
    """Its norms in float32, as some models have them."""
    model = make_model("qwen2", torch.float32).bfloat16()
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    model.save_pretrained(folder)
    byte_tokenizer().save(folder)
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_merging_keeps_each_weight_in_the_number_format_of_the_base(tmp_path: Path) -> None:
    base = bfloat16_base(tmp_path / "base")
    attach(decoder := load_model(base), ours("lora"), seed=1)
    shake(p for p in decoder.parameters() if p.requires_grad)
    save_adapter(decoder, tmp_path / "adapter", base)
    own = stored(merge_folder(tmp_path / "adapter", tmp_path / "own"))
    before = stored(base)
    assert own.keys() == before.keys() and all(own[name].dtype == before[name].dtype for name in own)
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16, torch.float32}
    exact = stored(merge_folder(tmp_path / "adapter", tmp_path / "exact", dtype="float32"))
    assert {tensor.dtype for tensor in exact.values()} == {torch.float32}
    assert all(torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in exact.items())
    changed = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(exact[changed], before[changed].float())
    assert json.loads((tmp_path / "own" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["dtype"] == "float32"


def test_weights_beyond_float16_are_refused_rather_than_made_infinite(tmp_path: Path) -> None:
    base = bfloat16_base(tmp_path / "base")
    attach(decoder := load_model(base), ours("lora"))
    with torch.no_grad():
        next(p for p in decoder.parameters() if p.requires_grad).fill_(1e6)
        for name, parameter in decoder.named_parameters():
            if name.endswith("lora_B"):
                parameter.fill_(1.0)
    save_adapter(decoder, tmp_path / "adapter", base)
    with pytest.raises(ModelFileError, match="beyond those of float16"):
        merge_folder(tmp_path / "adapter", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["load_adapted", "the docs' snippet"])
def test_a_loaded_adapter_with_dropout_answers_the_same_twice(way: str, tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    attach(decoder := load_model(base), LoRAConfig(rank=4, dropout=0.5))
    shake(p for p in decoder.parameters() if p.requires_grad)
    save_adapter(decoder, tmp_path / "adapter", base)
    if way == "load_adapted":
        loaded, _ = load_adapted(tmp_path / "adapter")
    else:
        load_adapter(loaded := load_model(base), tmp_path / "adapter", name="sums")
    with torch.no_grad():
        assert torch.equal(our_logits(loaded, tokens()), our_logits(loaded, tokens()))
        loaded.train()
        assert not torch.equal(our_logits(loaded, tokens()), our_logits(loaded, tokens()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_something": True}, r"unknown field use_something \(True\)"),
        ({"shift_config": {"by": 3}}, "unknown field shift_config"),
        ({"use_something": False, "shift_config": None, "runtime_config": {"x": 1}}, None),
    ],
)
def test_unknown_fields_of_an_adapter_are_refused_unless_they_are_off(change, said, tmp_path: Path) -> None:
    save_adapter(tuned(tmp_path), tmp_path / "adapter", tmp_path / "base")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    if said is None:
        read_adapter_config(tmp_path / "adapter")
        return
    with pytest.raises(ModelFileError, match=said):
        read_adapter_config(tmp_path / "adapter")


def tuned(folder: Path) -> Decoder:
    attach(decoder := load_model(save("llama", folder / "base")), ours("lora"))
    return decoder


def test_every_field_of_pefts_own_config_is_known(tmp_path: Path) -> None:
    theirs(save("llama", tmp_path / "base"), "lora").save_pretrained(tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert len(fields) > 25 and read_adapter_config(tmp_path / "adapter").lora.rank == 4


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("base_model.model.lm_head.lora_A.weight", "changes the model's head"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "changes the model's embedding"),
        ("base_model.model.model.embed_tokens.weight", "holds a whole embedding"),
        ("base_model.model.lm_head.weight", "holds a whole head"),
        ("base_model.model.score.weight", "does not belong to this model's linears"),
    ],
)
def test_what_an_adapter_changes_outside_the_blocks_is_named(tensor: str, said: str, tmp_path: Path) -> None:
    save_adapter(tuned(tmp_path), tmp_path / "adapter", tmp_path / "base")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(file), tensor: torch.zeros(4, 24)}, file)
    with pytest.raises(ModelFileError, match=said):
        load_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("hf:OWNER/NAME", "OWNER/NAME", None),
        ("OWNER/NAME@v1.0", "OWNER/NAME", "v1.0"),
        (None, None, None),
    ],
)
def test_an_adapter_names_its_base_as_the_hub_does(base, name, revision) -> None:
    assert base_fields(base) == {"base_model_name_or_path": name, "revision": revision}


def test_a_folder_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for base in ("a/b", Path("a/b")):
        assert base_fields(base)["base_model_name_or_path"] == str(tmp_path / "a" / "b")


def test_an_adapter_of_a_known_model_is_found_here_by_our_name_and_elsewhere_by_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("shoestring.models.peft_folder.find_model", lambda name, say: asked.append(name) or tmp_path)
    save_adapter(tuned(tmp_path), tmp_path / "adapter", "smollm2-135m")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    find_base(tmp_path / "adapter")
    (tmp_path / "adapter" / "shoestring.json").unlink()
    find_base(tmp_path / "adapter")
    fields |= {"base_model_name_or_path": "OWNER/NAME", "revision": "v2"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    find_base(tmp_path / "adapter")
    assert asked == ["smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "OWNER/NAME@v2"]
