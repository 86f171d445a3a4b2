"""What holds for every kind of optimizer: its library's numbers; resumed; in any portions; in the pass backward."""

import json
import math

import lion_pytorch
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from shoestring.core.errors import ConfigError, RunError
from shoestring.pretraining.job import pretrain
from shoestring.train import checkpoint
from shoestring.train.objective import Loss, next_token
from shoestring.train.optimizer import build_optimizer
from shoestring.train.optimizer_config import OptimizerConfig
from shoestring.train.resident import ResidentEngine
from shoestring.train.state import TrainerState
from tests.train import tiny

KINDS = {
    "adamw": {},
    "8bit": {"state": "8bit"},
    "muon": {"kind": "muon"},
    "muon, cautious": {"kind": "muon", "scaling": "rms", "cautious": True, "learning_rate": 1e-3},
    "adafactor": {"kind": "adafactor", "weight_decay": 0.1},
    "lion": {"kind": "lion"},
}
WIDE = {"vocabulary": 320, "width": 64, "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 32}}


def config(kind, **changes):
    return TypeAdapter(OptimizerConfig).validate_python({**KINDS[kind], **changes})


def engine_of(kind, dtype=torch.float32, shape=WIDE, recompute=None, **changes):
    engine = ResidentEngine(lambda: tiny.model(dtype=dtype, **shape), recompute=recompute)
    engine.load()
    engine.begin(next_token, config(kind, **changes))
    return engine


def train(engine, steps, portions=1, clip=None):
    for number in steps:
        whole = tiny.batch(8, seed=number, ignored=0.3)
        each = 8 // portions
        engine.set_rate(1 / (1 + number))
        engine.forward_backward([tiny.rows_of(whole, at, at + each) for at in range(0, 8, each)])
        engine.optimizer_step(clip, 1 / (1 + number))


def weights(engine):
    return {name: parameter.detach() for name, parameter in engine.decoder.named_parameters()}


def assert_equal(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(kind):
    model = tiny.model(**WIDE, feed_forward={"kind": "moe", "width": 16, "experts": 4, "balance": "bias"})
    optimizer = build_optimizer(config(kind), model)
    owned = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    biases = {id(block.feed_forward.choice_bias) for block in model.blocks}
    assert sorted(id(p) for p, _ in owned) == sorted({id(p) for p in model.parameters()} - biases)
    assert all((group["weight_decay"] > 0) == (p.ndim >= 2) for p, group in owned)


@pytest.mark.parametrize("kind", KINDS)
def test_all_state_is_made_before_the_first_step(kind):
    engine = engine_of(kind)
    before = {name: tensor.shape for name, tensor in engine.state().tensors.items()}
    train(engine, [0])
    state = engine.state()
    assert {name: tensor.shape for name, tensor in state.tensors.items()} == before and not state.numbers
    assert {name.rpartition("/")[0] for name in before} == set(weights(engine)), "of every parameter"


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(kind, tmp_path):
    whole, cut, resumed = engine_of(kind), engine_of(kind), engine_of(kind)
    train(whole, range(4))
    train(cut, range(2))
    place = checkpoint.write_checkpoint(tmp_path, TrainerState(step=2), cut.state(), 1, lambda folder: None)
    resumed.decoder.load_state_dict(cut.decoder.state_dict())
    train(resumed, [5])  # another state than a fresh one's
    resumed.decoder.load_state_dict(cut.decoder.state_dict())
    checkpoint.restore(place, resumed)
    assert_equal(resumed.state().tensors, cut.state().tensors)
    train(resumed, range(2, 4))
    assert_equal(weights(resumed), weights(whole))
    assert_equal(resumed.state().tensors, whole.state().tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_portions_of_a_batch_give_the_same_step(kind):
    """In float64, where no sign depends on the order of a sum."""
    found = []
    for portions in (1, 2, 8):
        engine = engine_of(kind, torch.float64)
        train(engine, range(2), portions)
        found.append(weights(engine))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6 if kind == "8bit" else 1e-9)


# --- the libraries ------------------------------------------------------------------------------------------------


def beside(kind, make, steps=3):
    """Ours and the library's parameters after a few steps from the same gradients. make: groups -> optimizer."""
    ours, theirs = tiny.model(**WIDE), tiny.model(**WIDE)
    optimizer = build_optimizer(config(kind), ours)
    library = make([
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": config(kind).weight_decay},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ])  # fmt: skip
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=random) * torch.rand((), generator=random) ** 4
            other.grad = one.grad.clone()
        optimizer.step()
        library.step()
    return optimizer, library, list(zip(ours.parameters(), theirs.parameters(), strict=True))


def test_adafactor_is_torchs():
    _, _, pairs = beside("adafactor", lambda groups: torch.optim.Adafactor(groups, lr=0.01))
    assert all(torch.equal(one, other) for one, other in pairs)


def test_lion_is_the_librarys():
    _, _, pairs = beside("lion", lambda groups: lion_pytorch.Lion(groups, lr=1e-4, betas=(0.9, 0.99)))
    assert all(torch.equal(one, other) for one, other in pairs)


def test_moments_in_8_bits_are_torchaos():
    """The same codes, but for numbers that lie between two levels, and the same weights up to rounding."""
    from torchao.optim import AdamW8bit  # which takes seconds to import

    with torch.compiler.set_stance("force_eager"):
        ours, theirs, pairs = beside("8bit", lambda groups: AdamW8bit(groups, 3e-4, (0.9, 0.95)))
    quantized = 0
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
        for name in ("exp_avg", "exp_avg_sq"):
            kept = theirs.state[other][name]
            if f"{name}.codes" not in ours.state[one]:
                assert type(kept) is torch.Tensor
                continue
            quantized += 1
            codes, scale = ours.state[one][f"{name}.codes"], ours.state[one][f"{name}.scale"]
            torch.testing.assert_close(scale, kept.scale, rtol=1e-5, atol=0)
            differ = (codes.int() - kept.codes.int()).abs()
            assert differ.max() <= 1 and (differ > 0).double().mean() < 1e-3
    assert quantized >= 2


# --- in the pass backward -----------------------------------------------------------------------------------------

SHAPES = {
    "tied": WIDE,
    "own head": {**WIDE, "tied_head": False},
    "experts": {**WIDE, "feed_forward": {"kind": "moe", "width": 16, "experts": 4, "balance": "bias"}},
    "reversible": {**WIDE, "block": "reversible"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_move_in_the_pass_backward_are_the_same(kind):
    usual, early = engine_of(kind), engine_of(kind, in_backward=True)
    for engine in (usual, early):
        train(engine, range(3))
    assert all(parameter.grad is None for parameter in early.decoder.parameters())
    assert_equal(early.state().tensors, usual.state().tensors)
    assert_equal(weights(early), weights(usual))


@pytest.mark.parametrize("recompute", [None, "full"])
@pytest.mark.parametrize("shape", SHAPES)
def test_in_every_kind_of_model(shape, recompute):
    usual, early = (engine_of("adamw", torch.float32, SHAPES[shape], recompute, in_backward=b) for b in (False, True))
    for engine in (usual, early):
        train(engine, range(2))
    assert_equal(weights(early), weights(usual))


def test_gradients_are_freed_as_they_come():
    most = []
    engine = engine_of("adamw", in_backward=True)
    every = list(engine.decoder.parameters())
    for parameter in every:
        parameter.register_post_accumulate_grad_hook(lambda _: most.append(sum(p.grad is not None for p in every)))
    train(engine, [0])
    assert len(most) == len(every) and max(most) == 0


class Bad(type(next_token)):
    def __call__(self, *arguments):
        loss = super().__call__(*arguments)
        return Loss(loss.sum * math.nan, loss.count, loss.metrics)


def test_a_loss_that_is_not_finite_moves_nothing():
    engine = engine_of("adamw", in_backward=True)
    engine.objective = Bad()
    before = {name: tensor.clone() for name, tensor in weights(engine).items()}
    engine.set_rate(1.0)
    engine.forward_backward([tiny.batch(2)])
    result = engine.optimizer_step(None, 1.0)
    assert result.skipped and "loss" in result.reason and not result.torn and not engine.torn
    assert_equal(weights(engine), before)


def broken_off(engine):
    """A gradient that is not finite, of a weight that comes late in the pass backward."""
    engine.decoder.blocks[0].attention_norm.weight.register_hook(lambda gradient: gradient * math.nan)


def test_a_gradient_that_is_not_finite_breaks_the_step_off():
    engine = engine_of("adamw", in_backward=True)
    broken_off(engine)
    engine.set_rate(1.0)
    engine.forward_backward([tiny.batch(2)])
    assert engine.torn
    result = engine.optimizer_step(None, 1.0)
    assert result.torn and "blocks.0.attention_norm.weight" in result.reason


# --- in a run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    file = folder / "recipe.yaml"
    file.write_text(tiny.recipe_text(tiny.corpus(folder / "text"), steps=4))
    return file


EARLY = {"optimizer.in_backward": True, "train.clip": None, "train.microbatch": None}


def test_a_run_whose_step_is_broken_off_ends_at_the_checkpoint_before(recipe, tmp_path, monkeypatch):
    begin = ResidentEngine.begin

    def begin_badly(self, *arguments):
        begin(self, *arguments)
        step = self.optimizer_step

        def then_break(clip, rate):
            result = step(clip, rate)
            if self.steps == 3:
                broken_off(self)
            return result

        self.optimizer_step = then_break

    monkeypatch.setattr(ResidentEngine, "begin", begin_badly)
    with pytest.raises(RunError, match="step 4 was broken off among its weights: the gradient of blocks.0") as caught:
        pretrain(recipe, out=str(tmp_path / "run"), overrides={**EARLY, "train.rollbacks": 0})
    assert "step-000003" in caught.value.hint
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-000003"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train.clip": 1.0}, "set train.clip null"),
        ({"train.microbatch": 2}, "needs all 4 rows of a step at once, and train.microbatch is 2"),
        ({"model.sharing": {"unique_layers": 1}}, "layers that share weights"),
    ],
)
def test_what_cannot_move_in_the_pass_backward_is_refused(recipe, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        pretrain(recipe, out=str(tmp_path / "run"), overrides={**EARLY, **changes})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["8bit", "muon"])
def test_a_run_goes_on_with_its_optimizer(recipe, tmp_path, kind):
    out = tmp_path / "run"
    changes = {f"optimizer.{key}": value for key, value in KINDS[kind].items()}
    changes |= {**EARLY, "model.vocabulary": 320, "model.width": 64}
    pretrain(recipe, out=str(out), overrides={**changes, "train.keep": 2})
    whole = load_file(out / "latest" / "model.safetensors")
    newest = checkpoint.checkpoints(out)[-1]
    (newest / "trainer" / "state.json").unlink()  # as if it had been killed before
    pretrain(resume=out)
    assert_equal(load_file(out / "latest" / "model.safetensors"), whole)


def test_codes_that_do_not_fit_are_refused(tmp_path):
    engine = engine_of("8bit")
    place = checkpoint.write_checkpoint(tmp_path, TrainerState(step=1), engine.state(), 1, lambda folder: None)
    name = "embedding.weight/exp_avg.codes"
    tensors = load_file(place / checkpoint.OPTIMIZER)
    assert tensors[name].dtype == torch.uint8
    for damaged in (tensors[name].float(), tensors[name].to(torch.int8), tensors[name][:-1].contiguous()):
        save_file({**tensors, name: damaged}, place / checkpoint.OPTIMIZER)
        with pytest.raises(RunError, match=rf"{name} is .*, expected \[320, 64\] of uint8"):
            checkpoint.restore(place, engine)
    other = engine_of("adamw")
    save_file(tensors, place / checkpoint.OPTIMIZER)
    with pytest.raises(RunError, match="lacks embedding.weight/exp_avg$"):
        checkpoint.restore(place, other)
    assert json.loads((place / checkpoint.STATE).read_text())["optimizer"] == {}
