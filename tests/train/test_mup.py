"""The coordinate check of the maximal update parametrization (arXiv 2203.03466), and what it is made of."""

import math

import pytest
import torch
import torch.nn.functional as F

from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import finetune_recipe
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.pretraining.job import pretrain
from shoestring.train.mup import scale_fresh
from shoestring.train.optimizer import block_matrices, build_optimizer
from shoestring.train.optimizer_config import AdamWConfig
from tests.train import tiny

WIDTHS, BASE, HEAD = (64, 256, 1024), 64, 32


def decoder_of(width, mup, tied=True):
    shape = {
        "vocabulary": 128, "width": width, "layers": 2, "context": 64, "tied_head": tied,
        "attention": {"kind": "gqa", "heads": width // HEAD, "kv_heads": width // HEAD, "head_width": HEAD},
        "feed_forward": {"kind": "swiglu", "width": 3 * width}, "initializer_range": 0.08,
    }  # fmt: skip
    decoder = build(ModelConfig.model_validate(shape), seed=1)
    if mup:
        scale_fresh(decoder, block_matrices(decoder), BASE)
    return decoder


def sizes(width, mup, tied=True, steps=2, rate=5e-3):
    """Root mean square of what each block adds, of the stream before the last norm, and of what logits change by."""
    decoder = decoder_of(width, mup, tied)
    settings = {"scaling": "mup", "base_width": BASE} if mup else {}
    optimizer = build_optimizer(AdamWConfig(learning_rate=rate, weight_decay=0.0, **settings), decoder)
    tokens_BT = torch.randint(128, (4, 33), generator=torch.Generator().manual_seed(3))
    found, first = {}, None
    seen = {}
    for number, block in enumerate(decoder.blocks):
        block.register_forward_hook(
            lambda _, inputs, output, n=number: seen.__setitem__(f"block {n}", (output[0] - inputs[0]).detach())
        )
    decoder.norm.register_forward_hook(lambda _, inputs, output: seen.__setitem__("stream", inputs[0].detach()))
    for step in range(steps + 1):
        hidden_BTD, _ = decoder(tokens_BT[:, :-1])
        logits = decoder.head(hidden_BTD)
        first = logits.detach() if first is None else first
        for name, values in seen.items():
            found[f"{name}, step {step}"] = float(values.square().mean().sqrt())
        if step:
            found[f"logits' change, step {step}"] = float((logits.detach() - first).square().mean().sqrt())
        F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def over_widths(mup, tied=True):
    """The size of each at every width."""
    every = [sizes(width, mup, tied) for width in (WIDTHS if tied else [64, 128, 256])]
    return {name: [one[name] for one in every] for name in every[0]}


@pytest.mark.parametrize("tied", [True, False])
def test_activations_stay_within_a_factor_of_two_over_widths(tied):
    found = over_widths(mup=True, tied=tied)
    activations = {name: max(values) / min(values) for name, values in found.items() if "logits" not in name}
    assert len(activations) == 3 * 3 and max(activations.values()) < 1.25, activations
    # Of logits fresh weights are a part, which goes with 1/√m: what steps change comes down to a limit.
    for _, before, last in (values for name, values in found.items() if "logits" in name):
        assert 1 < before / last < 1.5, found


def test_without_it_they_do_not():
    found = over_widths(mup=False)
    assert all(values[-1] / values[0] > 4 for values in found.values())


def test_groups_hold_every_parameter_once_at_its_rate():
    decoder = decoder_of(256, mup=False)
    optimizer = build_optimizer(
        AdamWConfig(learning_rate=8e-3, weight_decay=0.1, scaling="mup", base_width=64), decoder
    )
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(decoder.parameters()))
    matrices = block_matrices(decoder)
    for name, parameter in decoder.named_parameters():
        rate, decay = rates[id(parameter)]
        if id(parameter) in matrices:
            assert (rate, decay) == (2e-3, pytest.approx(0.4)), name
            assert rate * decay == pytest.approx(8e-3 * 0.1)  # of each step, as at the base
        elif name == "norm.weight":
            assert (rate, decay) == (2e-3, 0.0)
        else:
            assert rate == 8e-3 and decay == (0.1 if parameter.ndim > 1 else 0.0), name


def test_the_base_itself_is_left_as_it_is():
    plain, scaled = decoder_of(64, mup=False), decoder_of(64, mup=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))
    wide, narrower = decoder_of(256, mup=False), decoder_of(256, mup=True)
    ratio = wide.blocks[0].attention.query.weight / narrower.blocks[0].attention.query.weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))
    assert torch.equal(wide.embedding.weight, narrower.embedding.weight)
    assert float(narrower.norm.weight.detach().mean()) == 0.25


def test_a_run_with_it_resumes_and_its_model_is_like_any_other(tmp_path):
    import transformers

    recipe = tmp_path / "recipe.yaml"
    text = tiny.recipe_text(tiny.corpus(tmp_path / "text"))
    recipe.write_text(text.replace("{learning_rate: 3e-3}", "{learning_rate: 3e-3, scaling: mup, base_width: 8}"))
    whole = pretrain(recipe, out=str(tmp_path / "run"), train__steps=6)
    model = transformers.AutoModelForCausalLM.from_pretrained(whole.model)
    assert model.num_parameters() == whole.parameters and math.isfinite(whole.bits_per_byte)
    assert 0.2 < float(model.model.norm.weight.detach().mean()) < 0.3  # began at 8 / 32
    longer = pretrain(resume=tmp_path / "run", train__steps=8)
    assert longer.steps == 8


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer.scaling": "mup"}, "scaling mup and base_width, the width .* go together"),
        ({"optimizer.base_width": "64"}, "scaling mup and base_width, the width .* go together"),
        ({"model.init": "smollm2-135m"}, "says how fresh weights begin"),
        ({"model.linear": "{kind: low_rank, share: 0.5}"}, "linear"),
        (
            {"model.feed_forward": "{kind: moe, width: 16, experts: 4}"},
            "mup is not worked out for a mixture of experts",
        ),
    ],
)
def test_what_it_is_not_worked_out_for_is_refused(changes, sentence):
    both = {"optimizer.scaling": "mup", "optimizer.base_width": "64"}
    alone = [name for name in changes if name.startswith("optimizer.")]
    with pytest.raises(ConfigError, match=sentence):
        load_pretrain_recipe("quickstart", changes if alone else {**both, **changes})


def test_fine_tuning_has_no_fresh_weights():
    with pytest.raises(ConfigError, match="for weights that begin fresh, in pretraining"):
        finetune_recipe("smollm2-135m", "mine.jsonl", {"optimizer.scaling": "mup", "optimizer.base_width": 64})
