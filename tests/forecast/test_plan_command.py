"""`shoestring plan` and `doctor --save` on the command line: what is printed, and mistakes in one sentence."""

from __future__ import annotations

import json

import pytest

from shoestring.cli import doctor
from shoestring.cli.main import main
from shoestring.core.config import dump_yaml
from shoestring.forecast import computer, own_size
from shoestring.plan.machine_file import ProcessConfig, read_machine, save_machine
from tests.forecast.machines import PROCESS, described


@pytest.fixture
def laptop(tmp_path):
    file = tmp_path / "laptop.yaml"
    save_machine(described(), file)
    return str(file)


def said(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plan_for_a_described_machine(capsys, laptop):
    code, out, _ = said(capsys, "plan", "quickstart-smoke", "--machine", laptop, "--memory", "2GB")
    assert code == 0 and out.startswith("plan      pretrain quickstart-smoke: ")
    labels = [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]
    assert labels[:4] == ["plan", "machine", "within", "assumed"] and "fastest" in labels and "1" in labels
    assert "resident" in out and "checkpointed" in out and "process, before the model" in out
    every = said(capsys, "plan", "quickstart-smoke", "--machine", laptop, "--memory", "2GB", "--all")[1]
    assert len(every.splitlines()) > len(out.splitlines())


def test_json_is_one_object(capsys, laptop):
    words = ["plan", "compact", "--job", "generate", "--machine", laptop, "--generate.prompt", "100", "--json"]
    code, out, _ = said(capsys, *words)
    found = json.loads(out)
    assert code == 0 and found["job"] == "generate" and found["chosen"]["seconds"] > 0
    assert {row["engine"] for row in found["rows"]} >= {"resident"}


def test_the_recipes_settings_are_flags(capsys, laptop):
    words = ["plan", "quickstart-smoke", "--machine", laptop, "--json"]
    short, long = (
        json.loads(said(capsys, *words, "--train.sequence_length", n, "--train.batch_tokens", "1024")[1])
        for n in ("64", "128")
    )
    assert short["tokens_per_step"] == long["tokens_per_step"] == 1024
    assert max(row["at_once"] for row in short["rows"]) == 2 * max(row["at_once"] for row in long["rows"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["quickstart", "--job", "fintune"], "there is no plan for a job 'fintune'\n  did you mean finetune?"),
        (["quickstart", "--memory", "many"], "expected a size such as 4GB"),
        (["quickstart", "--time", "10"], "time 10: seconds, minutes or hours?"),
        (["quickstart", "--memory", "0MB"], "memory 0 leaves nothing to plan with"),
        (["quickstart", "--memory", "2MB"], "are too little"),
        (["quickstart", "--train.sequence_lenght", "3"], "unknown setting train.sequence_lenght"),
        (["quickstart", "--job", "distill"], "distill needs a recipe's teacher, student and data"),
        (["quickstart", "--job", "generate", "--generate.promt", "3"], "did you mean generate.prompt?"),
        (["quickstart", "--job", "generate", "--train.steps", "3"], "generate takes the model alone"),
        (["no-such-recipe"], "there is no recipe or model 'no-such-recipe'"),
        (["quickstart", "--largest", "width"], "width"),
        (["elite-112m-fp8"], "what precision.fp8 takes is not predicted"),
        (["compact", "--job", "quantize"], "can be quantized"),
        (["efficientlm", "--gpu-memory", "8GB"], "a GPU's memory takes is not predicted of attention of kind mtla"),
        (["efficientlm", "--largest", "model"], "not worked out for a model with"),
    ],
)
def test_mistakes_are_one_sentence(capsys, laptop, words, sentence):
    code, out, err = said(capsys, "plan", *words, "--machine", laptop)
    assert code == 2 and out == "" and err.startswith("error: ") and sentence in err
    assert "Traceback" not in err


def test_a_model_needs_a_job(capsys, base, laptop):
    code, _, err = said(capsys, "plan", str(base), "--machine", laptop)
    assert code == 2 and "what is to be done with it is not said" in err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("version: 7\nprocessor: x\n", "laptop.yaml:1: this machine is described in version 7, and this Shoestring"),
        ("processor: x\n", "this describes no machine: it has no version"),
        ("version: 1\nprocessor: x\nwings: 2\n", "unknown setting wings"),
        ("[1, 2]\n", "laptop.yaml"),
    ],
)
def test_a_file_that_describes_no_machine_of_ours(capsys, tmp_path, text, sentence):
    file = tmp_path / "laptop.yaml"
    file.write_text(text)
    code, _, err = said(capsys, "plan", "quickstart", "--machine", str(file))
    assert code == 2 and sentence in err and err.startswith("error: ")
    assert said(capsys, "plan", "quickstart", "--machine", str(tmp_path / "none.yaml"))[0] == 2


def test_a_machine_is_written_and_read_alike(tmp_path):
    file = tmp_path / "laptop.yaml"
    save_machine(described(), file)
    assert read_machine(file) == described() and file.read_text() == dump_yaml(described())
    file.write_text(file.read_text().replace("memory: 8000000000", "memory: 16GB", 1))
    assert read_machine(file).memory == 16_000_000_000


def test_doctor_saves_this_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(own_size, "fresh_sizes", lambda: ProcessConfig.model_validate(PROCESS))
    monkeypatch.setattr(computer, "this_computer", lambda process: described(process=process))
    monkeypatch.setattr(doctor, "measure", lambda: {"matmul": {}})
    monkeypatch.setattr(doctor, "describe", lambda found: {})
    monkeypatch.setattr(doctor, "matmul_table", lambda found: [])
    file = tmp_path / "laptop.yaml"
    assert said(capsys, "doctor", "--save", str(file))[:2] == (
        0, f"saved      {file}: shoestring plan RECIPE --machine {file}\n"
    )  # fmt: skip
    assert read_machine(file) == described()
    assert said(capsys, "doctor", "--save", str(file))[0] == 0, "the same file may be written anew"
    other = tmp_path / "notes.yaml"
    other.write_text("a: 1\n")
    code, _, err = said(capsys, "doctor", "--save", str(other))
    assert code == 2 and "describes no machine" in err and other.read_text() == "a: 1\n"


def test_a_process_of_its_own_says_how_large_it_is():
    sizes = own_size.fresh_sizes()
    assert 50e6 < sizes.decoding <= sizes.training <= sizes.checkpointing < 4e9


def test_calibrating_alone_and_before_a_plan(capsys, laptop, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    code, out, _ = said(capsys, "plan", "--calibrate", "--json")
    assert code == 0 and json.loads(out)["receipts"] == 0
    code, out, err = said(capsys, "plan", "quickstart-smoke", "--calibrate", "--machine", laptop)
    assert code == 0 and out.startswith("plan      pretrain") and "0 receipts of this machine" in err
    code, _, err = said(capsys, "plan", "--calibrate", "--memory", "2GB")
    assert code == 2 and "--memory is of a plan, and none is asked for" in err
    code, _, err = said(capsys, "plan")
    assert code == 2 and "there is nothing to plan" in err
