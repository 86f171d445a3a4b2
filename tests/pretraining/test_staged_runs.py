"""Runs of several stages: resumed bit for bit anywhere, told, measured alike, within their prediction; and refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes

from shoestring.core.errors import BudgetError, ConfigError, RunError
from shoestring.finetuning.config import load_finetune_recipe
from shoestring.kernels import allocator
from shoestring.models.folder import load_model, read_config
from shoestring.models.weights import TensorFile
from shoestring.pretraining import job as pretraining
from shoestring.pretraining.config import PretrainTrainSection, load_pretrain_recipe
from shoestring.pretraining.job import PretrainJob
from shoestring.train import run as run_module
from shoestring.train.checkpoint import checkpoints, read_state
from shoestring.train.interrupt import Interrupted
from shoestring.train.metrics import read_metrics
from shoestring.train.plot import write_plot
from shoestring.train.resident import ResidentEngine
from shoestring.train.run import execute
from shoestring.train.run_folder import Start, resume
from tests.train import tiny
from tests.train.test_resume import assert_same_run, check_killed_runs, losses

STAGES = (
    "[{until: 2, sequence_length: 8, batch_tokens: 64, layers: 1, growth: stack, learning_rate_scale: 0.5},"
    " {until: 4, sequence_length: 16, layers: 2}]"
)
REFUSAL = "no room for a tensor of 10 bytes: 5 live of at most 6"  # as the allocator says it
OFTEN = "evaluate_every: 100\n  checkpoint_every: 1\n  keep: 100\n  final_evaluate_tokens: 64"
SELDOM = OFTEN.replace("checkpoint_every: 1", "checkpoint_every: 100")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny.corpus(tmp_path_factory.mktemp("text"))


def recipe_of(folder: Path, source: Path, stages: str = STAGES, steps: int = 6, schedule: str = "", rest: str = OFTEN):
    text = tiny.recipe_text(source, steps=steps).replace("layers: 2", "layers: 4")
    text = text.replace("evaluate_every: 3\n  checkpoint_every: 3", f"stages: {stages}\n  {rest}")
    file = folder / "recipe.yaml"
    file.write_text(text.replace("{kind: wsd, warmup: 2}", schedule or "{kind: wsd, warmup: 2}"))
    return file


def begin(recipe: Path, out: Path, **changes):
    return execute(PretrainJob(), Start(load_pretrain_recipe(recipe, {"out": str(out), **changes}), "r", "r"))


def go_on(out: Path, **changes):
    return execute(PretrainJob(), resume(out, load_pretrain_recipe, changes))


@pytest.mark.parametrize(
    ("schedule", "stops"),
    [
        ("{kind: cosine, warmup: 1}", (1, 2, 3, 4, 5)),  # in the middle of each stage, and at each boundary
        ("{kind: cosine_restarts, warmup: 1, cycles: 2}", (2, 5)),
        ("{kind: wsd, warmup: 1, decay: 0.7}", (1, 4)),
        ("{kind: wsd, warmup: 1, decay: 4, shape: sqrt}", (2, 3)),
        ("{kind: linear, warmup: 0.2}", (3, 4)),
    ],
)
def test_a_run_stopped_in_any_stage_ends_as_one_that_was_not(tmp_path, source, monkeypatch, schedule, stops):
    recipe = recipe_of(tmp_path, source, schedule=schedule, rest=SELDOM)
    begin(recipe, tmp_path / "whole")
    guard = run_module.MemoryGuard

    class StopsAt(guard):
        def after_step(self, event):
            event.stopping = "stopped" if event.state.step in stops else ""

    monkeypatch.setattr(run_module, "MemoryGuard", StopsAt)
    with pytest.raises(Interrupted):
        begin(recipe, tmp_path / "cut")
    for _ in stops[1:]:
        with pytest.raises(Interrupted):
            go_on(tmp_path / "cut")
    go_on(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert read_config(tmp_path / "cut" / "latest").layers == 4


OPTIMIZERS = {
    "muon": {"optimizer": {"kind": "muon", "cautious": True}},
    "8 bits": {"optimizer": {"kind": "adamw", "state": "8bit"}},
    "adafactor": {"optimizer": {"kind": "adafactor"}},
    "lion": {"optimizer": {"kind": "lion"}},
    "int8": {"precision.compute": "int8"},
    "fp8": {"precision.fp8": {"recipe": "rowwise", "emulate": True}},
    "moved in backward": {"optimizer": {"in_backward": True}, "train.clip": None, "train.microbatch": None},
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_and_format_goes_on_where_the_model_grows(tmp_path, source, kind):
    recipe = recipe_of(tmp_path, source, "[{until: 2, sequence_length: 16, layers: 2}]", steps=4)
    whole, cut = begin(recipe, tmp_path / "whole", **OPTIMIZERS[kind]), tmp_path / "cut"
    shutil.copytree(whole.out, cut, symlinks=True)
    for path in checkpoints(cut)[2:]:
        shutil.rmtree(path)
    go_on(cut)
    assert_same_run(whole.out, cut)
    assert read_metrics(cut / "metrics.jsonl")[-1]["step"] == 4 and whole.state.skipped_in_a_row == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source):
    folder = tmp_path_factory.mktemp("whole")
    return begin(recipe_of(folder, source), folder / "run")


def lines(out: Path):
    found = read_metrics(out / "metrics.jsonl")
    return [{name: line.get(name) for name in ("event", "step", "stage", "loss")} for line in found]


def test_a_run_killed_behind_a_boundary_crosses_it_again_and_tells_it_once(tmp_path, whole):
    """Its newest checkpoint is of the stage before; metrics.jsonl knows of the change already."""
    cut = tmp_path / "cut"
    shutil.copytree(whole.out, cut, symlinks=True)
    for path in checkpoints(cut)[1:]:
        shutil.rmtree(path)
    go_on(cut)
    assert_same_run(whole.out, cut)
    assert lines(cut) == lines(whole.out)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_runs_of_stages_killed_at_random_instants(tmp_path, source, seed):
    stages = "stages: [{until: 20, sequence_length: 8, layers: 1}, {until: 40, batch_tokens: 64, layers: 2}]"

    def staged(text):
        return text.replace("layers: 2", "layers: 4").replace("evaluate_every", f"{stages}\n  evaluate_every")

    check_killed_runs(tmp_path, source, seed, staged)


@pytest.mark.parametrize("where", ["forward_backward", "begin"])
def test_memory_that_is_refused_at_a_boundary_leaves_a_checkpoint_to_go_on_from(
    tmp_path, source, whole, monkeypatch, where
):
    """In the first step of a stage, or while the model grows."""
    cut, calls, method = tmp_path / "cut", [], getattr(ResidentEngine, where)

    def refuse(self, *arguments):
        calls.append(where)
        if len(calls) == {"forward_backward": 3, "begin": 2}[where]:
            raise RuntimeError(REFUSAL)
        return method(self, *arguments)

    monkeypatch.setattr(ResidentEngine, where, refuse)
    with pytest.raises(BudgetError, match="step 3 asked for"):
        begin(recipe_of(tmp_path, source), cut)
    state = read_state(checkpoints(cut)[-1])
    reached = where == "forward_backward"  # the model had grown
    assert (state.step, state.stage, read_config(checkpoints(cut)[-1]).layers) == (2, reached, 1 + reached)
    monkeypatch.undo()
    go_on(cut)
    assert_same_run(whole.out, cut)
    assert lines(cut) == lines(whole.out)


def test_each_stage_is_in_the_metrics_and_its_checkpoints_are_models_of_their_depth(whole):
    found = read_metrics(whole.out / "metrics.jsonl")
    steps = [line for line in found if "loss" in line]
    assert [line["stage"] for line in steps] == [1, 1, 2, 2, 3, 3]
    assert [line["tokens"] for line in steps] == [64, 128, 256, 384, 512, 640]
    events = [(line["step"], line["stage"], line["sequence_length"], line["batch_tokens"], line["layers"])
              for line in found if line.get("event") == "stage"]  # fmt: skip
    assert events == [(3, 2, 16, 128, 2), (5, 3, 32, 128, 4)]
    assert steps[0]["lr"] == pytest.approx(0.5 * 3e-3 / 3) and steps[2]["lr"] == pytest.approx(3e-3)
    depths = [read_config(folder).layers for folder in checkpoints(whole.out)]
    assert depths == [1, 1, 2, 2, 4, 4]
    train = load_pretrain_recipe(whole.out / "recipe.yaml").train
    assert [portion.microbatch for portion in train.portions] == [8, 4, 2], "as many tokens at once in each stage"
    model = load_model(checkpoints(whole.out)[0])
    assert model(torch.zeros(1, 40, dtype=torch.int64))[0].shape == (1, 40, 32)


def test_layers_that_were_there_keep_their_moments_and_new_ones_begin_with_none(tmp_path, source):
    stages = "[{until: 3, layers: 2}]"
    whole = begin(recipe_of(tmp_path, source, stages, steps=4), tmp_path / "run")
    before, after = (folder / "trainer" / "optimizer.safetensors" for folder in checkpoints(whole.out)[2:])
    name = "attention.output.weight"
    with TensorFile(before) as old, TensorFile(after) as new:
        assert [float(new.read(f"blocks.{n}.{name}/step")) for n in range(4)] == [4, 4, 1, 1]
        was, is_now = (file.read(f"blocks.1.{name}/exp_avg_sq") for file in (old, new))
        assert bool((is_now >= 0.95 * was * (1 - 1e-5)).all()) and float(was.max()) > 0
        assert bool(new.read(f"blocks.3.{name}/exp_avg").any()), "new layers learn at once"


def test_held_out_text_is_read_in_the_last_stages_rows_whatever_the_stage(tmp_path, source, monkeypatch):
    lengths = set()
    measure = pretraining.Evaluation.after_step

    def watched(self, event):
        lengths.update(batch.tokens_BT.shape[1] for batch in self.sample)
        measure(self, event)

    monkeypatch.setattr(pretraining.Evaluation, "after_step", watched)
    often = SELDOM.replace("evaluate_every: 100", "evaluate_every: 1")
    run = begin(recipe_of(tmp_path, source, rest=often), tmp_path / "run")
    assert lengths == {32}
    assert len([line for line in read_metrics(run.out / "metrics.jsonl") if "held_out_loss" in line]) == 6


def test_each_change_is_a_line_in_the_plot(whole, tmp_path, monkeypatch):
    drawn, axvline = [], Axes.axvline
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **more: drawn.append(x) or axvline(self, x, **more))
    write_plot(whole.out / "metrics.jsonl", tmp_path / "loss.png")
    assert drawn == [128, 384]


def test_the_header_names_every_stage_and_the_one_that_takes_most(tmp_path, source, capsys):
    begin(recipe_of(tmp_path, source, rest=SELDOM), tmp_path / "run")
    said = capsys.readouterr().err
    assert "stages    1: 2 steps of 64 tokens in rows of 8, 1 layer\n" in said
    assert "3: 2 steps of 128 tokens in rows of 32, 4 layers; takes most memory" in said
    assert "stage     2 from step 3: 128 tokens in rows of 16, 2 layers" in said


LARGE = {
    "the last": ("[{until: 1, sequence_length: 8, batch_tokens: 64, layers: 2}]", {}, 2),
    "the first": ("[{until: 1, batch_tokens: 1024, microbatch: 32}]", {}, 1),
    "a model that grows": ("[{until: 1, layers: 2}]", {"model.vocabulary": 4000, "train.batch_tokens": 64}, 2),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_run_takes_what_its_largest_stage_was_predicted_to_take(tmp_path, source, case):
    assert allocator.install(), "the allocator counts where it can be compiled"
    stages, changes, largest = LARGE[case]
    before = allocator.live()
    run = begin(recipe_of(tmp_path, source, stages, steps=2), tmp_path / "run", **changes)
    assert f"{largest}: 1 step of" in run.opened.header.split("; takes most memory")[0].splitlines()[-1]
    predicted, counted = run.opened.prediction.tensor_bytes, run.allocated.live_peak - before
    assert abs(predicted - counted) <= 0.02 * counted + 6000, (predicted, counted)


def test_other_stages_may_not_be_resumed_and_the_same_recipe_may(tmp_path, source, whole):
    cut = tmp_path / "cut"
    shutil.copytree(whole.out, cut, symlinks=True)
    same = load_pretrain_recipe(recipe_of(tmp_path, source), {"out": str(cut)})
    assert resume(cut, load_pretrain_recipe, given=same).state.step == 6
    with pytest.raises(RunError, match=r"train\.stages"):
        resume(cut, load_pretrain_recipe, {"train.stages": "[{until: 3, layers: 2}]"})


def test_a_checkpoint_of_no_stage_is_refused(tmp_path, whole):
    cut = tmp_path / "cut"
    shutil.copytree(whole.out, cut, symlinks=True)
    shutil.rmtree(checkpoints(cut)[-1])
    file = checkpoints(cut)[-1] / "trainer" / "state.json"
    state = json.loads(file.read_text())
    for stage, sentence in ((9, "is of stage 10, and the run has 3"), (1, "stage 2 has 2 layers, the checkpoint 4")):
        file.write_text(json.dumps({**state, "stage": stage}))
        with pytest.raises(RunError, match=sentence):
            go_on(cut)


def test_a_number_of_tokens_is_read_over_stages_of_different_batches():
    section = {"tokens": 10_000, "batch_tokens": 1000, "sequence_length": 10}
    settings = PretrainTrainSection.model_validate({**section, "stages": [{"until": 0.5, "batch_tokens": 100}]})
    assert settings.planned_steps == 19 and settings.planned_tokens == 10 * 100 + 9 * 1000
    assert PretrainTrainSection.model_validate(section).planned_steps == 10


REFUSED = {
    "[{until: 0.5, sequence_length: 16}, {until: 0.4, layers: 2}]": "stage 2 ends at 0.4, before or where stage 1 does",
    "[{until: 0.5, sequence_length: 16}, {until: 4, layers: 2}]": "shares of the run, all below 1, or steps",
    "[{until: 6, sequence_length: 16}]": "stage 1 ends at step 6, and the run at step 6: no step is left",
    "[{until: 2.5, sequence_length: 16}]": "a whole number of steps, not at 2.5",
    "[{until: 0.5, sequence_length: 64}]": r"sequence_length \(64\) is longer than that of the recipe \(32\)",
    "[{until: 0.5, sequence_length: 12}]": r"sequence_length \(12\) does not divide that of the recipe \(32\)",
    "[{until: 0.5, batch_tokens: 100}]": r"stage 1: batch_tokens \(100\) must be a multiple of sequence_length \(32\)",
    "[{until: 0.5, batch_tokens: 96, microbatch: 2}]": r"stage 1: microbatch \(2\) must divide the 3 rows",
    "[{until: 0.5}]": "stage 1 changes nothing",
    "[{until: 0.5, layers: 3}]": "stage 1 has 3 layers, which do not divide the 4 of the next one",
    "[{until: 0.5, layers: 8}]": "stage 1 has 8 layers and the next one 4: layers are only added",
    "[{until: 0.5, layers: 2}, {until: 0.6, layers: 1}]": "layers are only added",
    "[{until: 0.5, layers: 4, growth: zero}]": "as many layers: nothing grows",
    "[{until: 0.5, sequence_length: 16, growth: zero}]": "give its layers as well",
    "[{until: 0.1, layers: 1}, {until: 0.2, layers: 1}, {until: 0.3, layers: 1}, {until: 0.4, layers: 2},"
    " {until: 0.5, layers: 2}, {until: 0.6, layers: 2}]": "a run of 6 steps has no room for 7 stages",
}  # fmt: skip


@pytest.mark.parametrize("stages", REFUSED)
def test_stages_that_cannot_be_are_refused_in_a_sentence(tmp_path, stages):
    with pytest.raises(ConfigError, match=REFUSED[stages]):
        load_pretrain_recipe(recipe_of(tmp_path, Path("text"), stages))


SHARED = {"model.sharing": {"unique_layers": 2, "order": "cycle"}}
KINDS = [
    ({"data.continue_documents": True}, "{sequence_length: 16}", "keeps each document in its row"),
    ({"model.memory": {"layers": [1]}}, "{layers: 2}", "stacking would move them"),
    ({"model.memory": {"layers": [1], "scope": "persistent"}}, "{sequence_length: 16}", "persistent"),
    (SHARED, "{layers: 1}", r"its layers \(1\) must be a multiple"),
    (SHARED, "{layers: 2, growth: zero}", "cannot add nothing where it is new"),
    ({"model.sharing": {"unique_layers": 2, "order": "repeat"}}, "{layers: 2}", "order cycle"),
    ({"precision.compile": True}, "{layers: 2}", "precision.compile makes blocks that cannot be copied"),
    ({"precision.fp8": {"recipe": "delayed"}}, "{layers: 2}", "precision.fp8 by TransformerEngine makes blocks"),
    ({"train.steps": None, "train.time": "1m"}, "{until: 2, layers: 2}", "give the ends of stages as shares"),
]


@pytest.mark.parametrize(("changes", "stage", "sentence"), KINDS)
def test_models_and_runs_that_cannot_have_stages_are_refused_with_the_reason(tmp_path, changes, stage, sentence):
    stages = stage if "until" in stage else stage.replace("{", "{until: 0.5, ")
    with pytest.raises(ConfigError, match=sentence):
        load_pretrain_recipe(recipe_of(tmp_path, Path("text"), f"[{stages}]"), changes)


def test_fine_tuning_has_no_stages():
    with pytest.raises(ConfigError, match=r"(?s)train\.stages.*stages are of pretraining recipes"):
        load_finetune_recipe("lazy-finetune-smoke", {"train.stages": "[{until: 0.5, sequence_length: 64}]"})


def test_a_model_to_continue_from_has_its_layers_and_may_have_stages_of_length(tmp_path, whole, source):
    with pytest.raises(ConfigError, match=r"leave out model\.init, or the layers"):
        load_pretrain_recipe(recipe_of(tmp_path, source), {"model.init": str(whole.out)})
    recipe = recipe_of(tmp_path, source, "[{until: 1, sequence_length: 8}]", steps=2)
    run = begin(recipe, tmp_path / "run", **{"model.init": str(whole.out)})
    assert run.state.stage == 1 and read_config(run.checkpoint).layers == 4


def test_shared_blocks_grow_by_running_once_more(tmp_path, source):
    recipe = recipe_of(tmp_path, source, "[{until: 2, layers: 2}]", steps=3)
    run = begin(recipe, tmp_path / "run", **SHARED, **{"model.block": "reversible"})
    assert [read_config(folder).layers for folder in checkpoints(run.out)] == [2, 2, 4]
    sizes = [folder.joinpath("model.safetensors").stat().st_size for folder in checkpoints(run.out)]
    assert max(sizes) - min(sizes) < 200
    again = tmp_path / "again"
    shutil.copytree(run.out, again, symlinks=True)
    shutil.rmtree(checkpoints(again)[-1])
    go_on(again)
    assert_same_run(run.out, again)
    assert read_state(checkpoints(again)[-1]).stage == 1
