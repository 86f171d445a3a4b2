"""What cannot be used, given to every verb that makes a model smaller: one sentence, exit 2, nothing half written."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoestring.cli.main import main
from shoestring.compression.prune.job import prune
from shoestring.data.tokenizer import Tokenizer
from shoestring.models.adapters import attach
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.models.folder import load_model, read_config, save_model
from shoestring.models.peft_folder import save_adapter
from shoestring.nn.lora_config import LoRAConfig
from tests.compression.distill.distilling import SMALLER, run
from tests.compression.prune.prunable import FEW, prunable
from tests.data import templates
from tests.data.families import chatml
from tests.finetuning import tiny

# {model}, {text}: what is given.
LINES = {
    "quantize": "quantize {model} --group 8 --calibrate {text}",
    "quantize by rows": "quantize {model} --group 8 --method rtn --calibrate {text}",
    "prune parts": "prune {model} --feed-forward 32 --calibrate {text}",
    "prune zeros": "prune {model} --pattern 2:4 --calibrate {text}",
    "factorize": "factorize {model} --parameters 0.75x --calibrate {text}",
    "compress": "compress {model} --target 0.5x --calibrate {text}",
    "distill from": "distill --teacher {model} --student {sound} --data {text} --steps 1",
    "distill into": "distill --teacher {sound} --student {model} --data {text} --steps 1",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: sound; nan, with a weight that is none; other, whose tokenizer has tokens that it has no rows for. Texts:
    sums; empty; short; formless, rows of no known form."""
    place = tmp_path_factory.mktemp("given")
    sound = prunable(place / "sound")
    tiny.sums(place / "sums.jsonl")
    decoder, tokenizer = load_model(sound), Tokenizer.load(sound)
    with torch.no_grad():
        decoder.get_parameter("blocks.1.attention.key.weight")[0, 0] = math.nan
    save_model(decoder, place / "nan", tokenizer)
    shutil.copytree(sound, place / "other")
    more = chatml(templates.CHATML)
    more.backend.add_tokens([f"<{n}>" for n in range(3)])
    Tokenizer(more.backend, more.config, more.chat_templates).save(place / "other")
    assert read_config(place / "other").vocabulary < Tokenizer.load(place / "other").vocabulary_size
    (place / "empty").write_text("")
    (place / "short").write_text("a")
    (place / "formless").with_suffix(".jsonl").write_text(json.dumps({"nothing": "known"}) + "\n")
    return place


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        ("sound", "empty", "empty"),
        ("sound", "short", ""),
        ("sound", "formless.jsonl", "formless.jsonl"),
        ("sound", "nowhere", "nowhere"),
        ("nan", "sums.jsonl", "NaN"),
        ("other", "sums.jsonl", "token"),
    ],
)
def test_it_is_one_sentence_and_nothing_is_left(
    line: str, model: str, text: str, said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = LINES[line].format(model=place / model, sound=place / "sound", text=place / text)
    words = [*given.split(" "), "--out", str(tmp_path / "out" / "made")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error and said in error, error
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == [], error


def test_an_adapter_is_not_merged_by_such_text(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (("sound", "empty", "empty"), ("nan", "sums.jsonl", "NaN"), ("other", "sums.jsonl", "token"))
    for model, text, said in cases:
        decoder = load_model(place / model)
        attach(decoder, LoRAConfig(rank=2))
        save_adapter(decoder, tmp_path / model / "adapter", place / model)
        words = ["merge", str(tmp_path / model / "adapter"), "--calibrate", str(place / text)]
        assert main([*words, "--out", str(tmp_path / model / "merged")]) == 2
        error = capsys.readouterr().err
        assert error.count("error: ") == 1 and said in error, error
        assert [path.name for path in (tmp_path / model).iterdir()] == ["adapter"]


def test_a_distilled_student_has_the_parameters_that_its_shapes_predict(place: Path, tmp_path: Path) -> None:
    """A fresh one, and one that was pruned before."""
    teacher, sums = place / "sound", place / "sums.jsonl"
    shape = ModelConfig.model_validate({**SMALLER, "vocabulary": read_config(teacher).vocabulary})
    (tmp_path / "shapes.yaml").write_text(json.dumps({"model": shape.model_dump(mode="json")}))
    pruned = prune(teacher, tmp_path / "pruned", sums, feed_forward=32, **FEW)
    for student, predicted in ((tmp_path / "shapes.yaml", shape.parameter_count()),
                               (pruned.folder, pruned.parameters_predicted)):  # fmt: skip
        made = run(teacher, student, sums, tmp_path / student.stem / "run", **{"train.steps": 1})
        found = sum(tensor.numel() for tensor in load_file(made.model / "model.safetensors").values())
        assert found == predicted == read_config(made.model).parameter_count()
        assert predicted == sum(parameter.numel() for parameter in build(read_config(made.model), seed=0).parameters())
