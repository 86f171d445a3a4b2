"""Number formats of a run: what `auto` becomes, float16 with its loss scaled, FP8 emulated, compiled blocks."""

import math
import sys
import types

import pytest
import torch

from shoestring.core.errors import ConfigError, RunError
from shoestring.nn.head import Head
from shoestring.nn.head_loss import head_loss
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.train import fp8, precision, transformer_engine
from shoestring.train.loss_scale import LARGEST, LossScale
from shoestring.train.objective import NextToken, next_token
from shoestring.train.optimizer_config import AdamWConfig
from shoestring.train.precision_config import FP8Config, LossScaleConfig, PrecisionConfig
from shoestring.train.resident import ResidentEngine
from tests.train import tiny

SIXTEENS = {"width": 32, "feed_forward": {"kind": "swiglu", "width": 48}}


def begun(settings=None, model=None, objective=next_token):
    """An engine that has begun, in a precision."""
    formats = PrecisionConfig.model_validate({"compute": "float32", **(settings or {})})
    engine = ResidentEngine(
        precision.prepared(model or tiny.model, formats),
        getattr(torch, formats.dtype),
        loss_scale=precision.loss_scale(formats),
    )
    engine.load()
    engine.begin(objective, AdamWConfig(learning_rate=3e-3))
    return engine


def losses(engine, steps, seed=0):
    found = []
    for number in range(steps):
        found.append(engine.forward_backward([tiny.batch(4, seed=seed + number % 2)]).mean)
        engine.optimizer_step(1.0, 1.0)
    return found


@pytest.mark.parametrize(("gain", "becomes"), [(1.29, "float32"), (1.3, "bfloat16"), (2.1, "bfloat16")])
def test_auto_takes_bfloat16_where_it_is_a_third_faster(monkeypatch, gain, becomes):
    monkeypatch.setattr(precision, "GAIN", 1.3)
    monkeypatch.setattr(precision, "matrix_peak", lambda dtype, device: gain if dtype == torch.bfloat16 else 1.0)
    recipe = load_pretrain_recipe("quickstart-smoke")
    assert recipe.precision.compute == "auto", "the default of every job"
    settled = precision.settled(recipe)
    assert settled.precision.compute == becomes
    told = precision.told(settled.precision, torch.device("cpu"))
    assert told.startswith(f"matmuls in {becomes}") and "optimizer in float32" in told
    assert (f"{gain:.1f} times float32's speed" in told) == (becomes == "bfloat16")


def test_float16_learns_as_float32_does():
    exact, scaled = losses(begun(), 12), losses(begun({"compute": "float16"}), 12)
    assert exact[-1] < exact[0] - 0.3, "it learns, so that the comparison means something"
    assert scaled == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_float16_keeps_what_a_softmax_has_little_of(frozen):
    """Labels with a probability of 1e-8 to 1e-7, which float16 by itself rounds to 0 or 6e-8."""
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(1, 16, generator=random).half().float()
    weight = torch.randn(4000, 16, generator=random).half().float()
    probabilities = (rows @ weight.t()).softmax(1)[0]
    rare = (probabilities > 1e-8) & (probabilities < 1e-7)
    labels = probabilities.argmax().view(1)
    rows.requires_grad_()
    weight = torch.nn.Parameter(weight, requires_grad=not frozen)
    found = []
    for dtype in (torch.float32, torch.float16):
        rows.grad = weight.grad = None
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            head_loss(rows.unsqueeze(0), Head(weight), labels.unsqueeze(0))[0].backward()
        found.append((rows.grad.clone(), None if frozen else weight.grad.clone()))
    (rows_exact, exact), (rows_half, half) = found
    assert (rows_half - rows_exact).norm() < 2e-3 * rows_exact.norm()
    if not frozen:
        assert rare.sum() > 20 and (half - exact)[rare].norm() < 0.05 * exact[rare].norm()


def test_int8_products_learn_as_float32_does():
    exact, rounded = losses(begun(), 20), losses(begun({"compute": "int8"}), 20)
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.01)


class Overflowing(NextToken):
    """A gradient that is infinite where it is asked to be."""

    def __init__(self):
        self.on = False

    def __call__(self, hidden, head, batch):
        loss = super().__call__(hidden, head, batch)
        if self.on:
            hidden.register_hook(lambda gradient: gradient * math.inf)
        return loss


def test_an_overflow_skips_the_step_and_the_scale_falls_and_recovers():
    objective = Overflowing()
    settings = {"compute": "float16", "loss_scale": {"initial": 1024.0, "growth_steps": 3}}
    engine = begun(settings, objective=objective)
    before = [p.detach().clone() for p in engine.parameters()]
    objective.on = True
    engine.forward_backward([tiny.batch(2)])
    result = engine.optimizer_step(1.0, 1.0)
    assert result.skipped and result.reason == "a gradient overflowed float16 at a loss scale of 1,024, now 512"
    assert all(torch.equal(p, old) for p, old in zip(engine.parameters(), before, strict=True))
    assert all(not moment.any() for state in engine.optimizer.state.values() for moment in state.values())
    objective.on = False
    scales = []
    for _ in range(4):
        engine.forward_backward([tiny.batch(2)])
        assert not engine.optimizer_step(1.0, 1.0).skipped
        scales.append(engine.loss_scale.scale)
    assert scales == [512, 512, 1024, 1024], "doubled after three steps"
    assert not any(torch.equal(p, old) for p, old in zip(engine.parameters(), before, strict=True))


def test_a_scale_never_falls_below_one_nor_grows_without_end():
    scale = LossScale(LossScaleConfig(initial=2.0, growth_steps=1))
    assert "now 1" in str(scale.overflowed()) and scale.overflowed() is None and scale.scale == 1
    for _ in range(40):
        scale.fits()
    assert scale.scale == LARGEST


def test_the_scale_is_part_of_the_state():
    engine = begun({"compute": "float16", "loss_scale": {"initial": 256.0}})
    losses(engine, 2)
    numbers = engine.state().numbers["loss_scale"]
    assert numbers == {"scale": 256.0, "steps": 2}
    other = LossScale(LossScaleConfig())
    other.restore(numbers, "here")
    assert other.state() == numbers
    for damaged in (None, {"scale": 256.0}, {"scale": 0.5, "steps": 1}, {"scale": math.nan, "steps": 1}):
        with pytest.raises(RunError, match="no loss scale of 1 or more"):
            other.restore(damaged, "here")


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_emulated_fp8_learns_as_bfloat16_does(recipe):
    rounded = begun({"compute": "bfloat16", "fp8": {"recipe": recipe, "emulate": True}}, lambda: tiny.model(**SIXTEENS))
    names = [name for name, _ in rounded.decoder.named_parameters()]
    assert names == [name for name, _ in tiny.model(**SIXTEENS).named_parameters()], "weights keep their names"
    found = losses(rounded, 12)
    wanted = losses(begun({"compute": "bfloat16"}, lambda: tiny.model(**SIXTEENS)), 12)
    assert found != wanted and found == pytest.approx(wanted, rel=0.02)
    assert all(p.dtype == torch.float32 for p in rounded.parameters())


def test_fp8_takes_the_linears_of_blocks_whose_sizes_fit():
    decoder = tiny.model(width=32, feed_forward={"kind": "swiglu", "width": 40})
    names = fp8.convert(decoder, FP8Config(emulate=True))
    assert names == [f"blocks.{i}.attention.{part}" for i in range(2) for part in ("query", "key", "value", "output")]
    assert fp8.left_out(decoder) == ["feed_forward.down", "feed_forward.gate", "feed_forward.up"]


def test_what_fp8_leaves_out_is_told(capsys):
    begun({"compute": "bfloat16", "fp8": {"emulate": True}}, lambda: tiny.model(feed_forward={"width": 40}))
    told = " ".join(capsys.readouterr().err.split())
    assert "fp8 not for feed_forward.down, feed_forward.gate, feed_forward.up: sizes" in told


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fp8": {}}, "cpu has no units for FP8"),
        ({"fp8": {"recipe": "delayed"}}, "needs the package transformer_engine"),
    ],
)
def test_fp8_that_this_machine_cannot_is_refused(settings, says):
    recipe = load_pretrain_recipe("elite-112m-smoke", {"precision": settings, "device": "cpu"})
    with pytest.raises(ConfigError, match=says):
        precision.settled(recipe)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"precision.fp8": {}, "precision.compute": "float16"}, "fp8 has bfloat16 around it"),
        ({"precision.fp8": {"history": 4}}, "history is for recipe delayed"),
        ({"precision.fp8": {"recipe": "delayed", "emulate": True}}, "emulate is for torchao's recipes"),
        ({"precision.loss_scale.initial": 8.0, "precision.compute": "bfloat16"}, "loss_scale is for compute float16"),
        ({"precision.compile": True, "budget.memory": "1GB"}, "cannot be promised with precision.compile"),
        ({"precision.fp8": True, "budget.memory": "1GB"}, "budget.memory cannot be promised with precision.fp8"),
    ],
)
def test_formats_that_exclude_each_other_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        load_pretrain_recipe("quickstart-smoke", settings)


class StandIn:
    """What we call of TransformerEngine: no more than the calls, since it runs on GPUs alone."""

    class Linear(torch.nn.Linear):
        def __init__(self, inputs, outputs, bias, params_dtype, device):
            super().__init__(inputs, outputs, bias, device, params_dtype)
            self.fp8_meta = {}

        def init_fp8_metadata(self):
            assert StandIn.recipe is not None, "inside autocast"
            for direction in ("scaling_fwd", "scaling_bwd"):
                history = torch.zeros(StandIn.recipe["amax_history_len"], 3)
                self.fp8_meta[direction] = types.SimpleNamespace(scale=torch.ones(3), amax_history=history)

        def forward(self, x):
            self.fp8_meta["scaling_fwd"].amax_history[0, 0] = float(x.detach().abs().max())
            return super().forward(x)

    recipe = None

    @classmethod
    def autocast(cls, enabled, recipe):
        import contextlib

        @contextlib.contextmanager
        def inside():
            cls.recipe = recipe
            yield
            cls.recipe = None

        return inside()


@pytest.fixture
def stand_in(monkeypatch):
    recipes = types.SimpleNamespace(Format=types.SimpleNamespace(HYBRID="HYBRID"), DelayedScaling=dict)
    names = {"": types.ModuleType("transformer_engine"), ".pytorch": StandIn, ".common.recipe": recipes}
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, f"transformer_engine{name}", module)


def test_transformer_engine_is_given_the_same_weights_and_its_scales_are_kept(stand_in, tmp_path):
    from shoestring.models.weights import TensorFile, save_file

    decoder, wanted = tiny.model(**SIXTEENS), tiny.model(**SIXTEENS)
    fp8.convert(decoder, FP8Config(recipe="delayed"))
    batch = tiny.batch(2)
    hidden, _ = decoder(batch.tokens_BT)
    torch.testing.assert_close(hidden, wanted(batch.tokens_BT)[0])
    kept = transformer_engine.state(decoder)
    assert len(kept) == 2 * 7 * 4 and kept["blocks.0.attention.query/scaling_fwd.amax_history"].shape == (16, 3)
    save_file(kept, tmp_path / "state.safetensors")
    other = tiny.model(**SIXTEENS)
    fp8.convert(other, FP8Config(recipe="delayed"))
    with TensorFile(tmp_path / "state.safetensors") as file:
        transformer_engine.restore(other, file)
        assert all(torch.equal(value, kept[key]) for key, value in transformer_engine.state(other).items())
        fewer = tiny.model(**SIXTEENS)
        fp8.convert(fewer, FP8Config(recipe="delayed", history=4))
        with pytest.raises(RunError, match="no blocks.0.attention.query/scaling_fwd.amax_history"):
            transformer_engine.restore(fewer, file)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_traced_blocks_give_the_losses_of_eager_ones(monkeypatch, recompute):
    """Through the compiler's front, whose graphs run as they are."""
    import shoestring.train.precision as module

    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="aot_eager"))
    monkeypatch.setattr(module, "compiler", lambda: "c++")
    wanted = losses(begun(), 4)
    engine = begun({"compile": True})
    engine.decoder.activation_checkpointing = recompute
    assert losses(engine, 4) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.long
def test_compiled_blocks_give_the_losses_of_eager_ones():
    assert losses(begun({"compile": True}), 6) == pytest.approx(losses(begun(), 6), rel=1e-5)


def test_kinds_that_are_no_graph_are_not_compiled():
    with pytest.raises(ConfigError, match="precision.compile is for blocks of kind sequential"):
        begun({"compile": True}, lambda: tiny.model(block="reversible"))


@pytest.mark.long
def test_elite_in_emulated_fp8_is_within_two_percent_of_bfloat16_after_100_steps(tmp_path):
    from shoestring.pretraining.job import pretrain
    from shoestring.train.metrics import read_metrics

    last = {}
    for name, settings in {"bfloat16": {}, "fp8": {"precision.fp8": {"emulate": True}}}.items():
        overrides = {"train.steps": 100, "train.evaluate_every": 100, "train.batch_tokens": 2048}
        overrides |= {"precision.compute": "bfloat16", **settings}
        run = pretrain("elite-112m-smoke", out=tmp_path / name, overrides=overrides)
        last[name] = [line["loss"] for line in read_metrics(run.out / "metrics.jsonl") if "loss" in line][-10:]
    assert max(last["bfloat16"]) < 6, "it has learned"
    assert last["fp8"] != last["bfloat16"] and sum(last["fp8"]) == pytest.approx(sum(last["bfloat16"]), rel=0.02)
    print(last)
