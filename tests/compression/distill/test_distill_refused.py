"""Budgets, mistakes, and what cannot be distilled: kept, or refused in one sentence with nothing left behind."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import shoestring
from shoestring.cli.main import main
from shoestring.compression.distill.config import DistillRecipe, distill_recipe
from shoestring.compression.distill.job import distill
from shoestring.compression.distill.material import open_material
from shoestring.compression.distill.memory import settle
from shoestring.core.errors import BudgetError, ConfigError, DataError, ModelFileError
from shoestring.data.tokenizer import Tokenizer
from shoestring.kernels import allocator
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.plan.choose import Choice
from shoestring.plan.constants import SPARE
from shoestring.plan.shapes import Machine
from shoestring.train.precision_config import PrecisionConfig
from shoestring.train.run_folder import Start
from tests.compression.distill.distilling import SHORT, SMALLER, run
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny


def test_a_budget_is_kept_or_refused_with_what_would_do(
    teacher: Path, student: Path, sums: Path, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="least"):
        run(teacher, student, sums, tmp_path / "run", **{"budget.memory": "100MB"})
    assert not (tmp_path / "run").exists()
    gc.collect()
    of_others = allocator.live()
    result = run(teacher, student, sums, tmp_path / "run", **{"budget.memory": "4GB"})
    assert result.predicted_tensor_memory is not None and result.tensor_memory is not None
    assert result.tensor_memory - of_others <= result.predicted_tensor_memory


def test_a_teacher_that_does_not_fit_is_streamed(student: Path, sums: Path, tmp_path: Path) -> None:
    tokenizer = chatml(templates.CHATML)
    shape = {**tiny.SHAPE, "layers": 12, "feed_forward": {"kind": "swiglu", "width": 4096}}
    deep = ModelConfig.model_validate({**shape, "vocabulary": tokenizer.vocabulary_size})
    save_model(build(deep, seed=1), tmp_path / "deep", tokenizer)
    machine = Machine(process=0, flops=1e12)

    def settled(memory: int, teacher: str = "auto") -> tuple[DistillRecipe, Choice]:
        settings = {**SHORT, "teacher": str(tmp_path / "deep"), "budget.memory": memory, "budget.teacher": teacher}
        recipe = distill_recipe(None, student, sums, settings)
        recipe = recipe.model_copy(update={"precision": PrecisionConfig(compute="float32")})
        try:
            return settle(recipe, open_material(Start(recipe, "test", "test")), machine)
        finally:
            allocator.limit()

    large, small = (settled(10**12, where)[1].prediction.total for where in ("resident", "streamed"))
    assert large - small > 0.5 * deep.parameter_count() * 4  # two layers of twelve are in memory
    assert settled(10**12)[0].budget.teacher == "resident"
    recipe, choice = settled(int((small + large) / 2 / SPARE))
    assert recipe.budget.teacher == "streamed" and choice.prediction.total == small
    with pytest.raises(BudgetError, match="least"):
        settled(int(small / SPARE) - 100_000)


def other_vocabulary(folder: Path, more: int) -> Path:
    tokenizer = chatml(templates.CHATML)
    if more:
        tokenizer.backend.add_tokens([f"<{n}>" for n in range(more)])
    shape = ModelConfig.model_validate({**SMALLER, "vocabulary": tokenizer.vocabulary_size + more})
    save_model(build(shape, seed=1), folder, Tokenizer(tokenizer.backend, tokenizer.config, tokenizer.chat_templates))
    return folder


def test_teachers_of_another_vocabulary_are_refused_with_both_sizes(
    teacher: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = read_config(teacher).vocabulary
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text(json.dumps({"model": {**SMALLER, "vocabulary": 1000}}))
    refused = [[str(shapes), f"{size:,} rows", "1,000"]]
    refused.append([str(other_vocabulary(tmp_path / "other", 3)), f"{size:,} tokens", f"{size + 3:,}"])
    for student, *said in refused:
        out = tmp_path / "out"
        flags = ["--teacher", str(teacher), "--student", student, "--data", str(sums), "--out", str(out)]
        assert main(["distill", *flags]) == 2
        error = capsys.readouterr().err
        assert all(words in error for words in said), error
        assert error.count("error:") == 1 and "Traceback" not in error and not out.exists()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"distill.beta": 0.5}, "beta is of divergence mixture"),
    ({"distill.cache_samples": 10, "distill.divergence": "reverse"}, "bias"),
    ({"distill.cache_samples": 10, "distill.on_policy": 0.5}, "nobody has read"),
    ({"distill.new_tokens": 5}, "on_policy is 0"),
    ({"distill.labels": 1.0}, "distill.labels"),
    ({"budget.engine": "streamed"}, "budget.teacher"),
    ({"precision.compute": "int8"}, "whole distributions"),
    ({"train.sequence_length": 100_000}, "longer"),
    ({"train.stages": "[]"}, "stages"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(
    changes: dict[str, Any], reason: str, teacher: Path, student: Path, sums: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        run(teacher, student, sums, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_bad_data_is_one_sentence(teacher: Path, student: Path, text: Path, tmp_path: Path) -> None:
    empty, few, broken = tmp_path / "empty.txt", tmp_path / "few.txt", tmp_path / "rows.jsonl"
    empty.write_text("")
    few.write_text("a")
    broken.write_text('{"messages": [\n')
    for file in (empty, few, broken, tmp_path / "nowhere.txt"):
        with pytest.raises(DataError):
            run(teacher, student, file, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="data.supervise"):
        run(teacher, student, text, tmp_path / "run", **{"data.supervise": "last"})
    with pytest.raises(ConfigError, match="needs --teacher and --data"):
        distill(student=student)


def test_a_student_with_nan_or_that_is_an_adapter_is_refused(
    teacher: Path, student: Path, sums: Path, tmp_path: Path
) -> None:
    decoder = load_model(student)
    with torch.no_grad():
        decoder.norm.weight[0] = math.nan
    save_model(decoder, tmp_path / "nan", Tokenizer.load(student))
    with pytest.raises(ModelFileError, match="NaN"):
        run(teacher, tmp_path / "nan", sums, tmp_path / "run")
    with pytest.raises(ModelFileError, match="NaN"):
        run(tmp_path / "nan", student, sums, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tuned = shoestring.finetune(student, sums, steps=1, out=tmp_path / "tuned").model
    with pytest.raises(ModelFileError, match="merge"):
        run(teacher, tuned, sums, tmp_path / "run")
