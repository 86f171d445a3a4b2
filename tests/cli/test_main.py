"""The frame of the command line: the overview, exit codes, and that every mistake is a sentence."""

import importlib
import json
import os
import shlex
import subprocess
import sys

import pytest

from shoestring.cli import main as cli
from shoestring.cli.main import main, parse, run_verb
from shoestring.cli.verb import verb
from shoestring.cli.verbs import GROUPS, VERBS, overview
from shoestring.compression.distill.config import distill_recipe
from shoestring.core.errors import ConfigError, DataError
from shoestring.finetuning.config import finetune_recipe
from shoestring.models.wheels import KNOWN
from shoestring.pretraining.config import load_pretrain_recipe


def said(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(list(arguments))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def shoestring(*arguments, **options):
    command = [sys.executable, "-m", "shoestring", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_lists_the_verbs_in_the_order_of_a_models_life(capsys, arguments):
    code, out, err = said(capsys, *arguments)
    assert (code, err) == (0, "") and out == overview() + "\n"
    lines = out.splitlines()
    assert lines[0] == "Language models on a shoestring."
    groups = [line.split()[0] for line in lines[2:-2]]
    assert groups == [group for group in GROUPS if group in groups]
    assert [name for line in lines[2:-2] for name in line.split()[1:]] == [
        verb.name for group in GROUPS for verb in VERBS if verb.group == group
    ]


@pytest.mark.parametrize("name", [verb.name for verb in VERBS])
def test_every_verb_has_help_with_two_examples_of_itself(capsys, name):
    code, out, err = said(capsys, name, "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: shoestring {name}")
    examples = out.partition("Examples:\n")[2].splitlines()
    assert len(examples) == 2
    assert all(example.startswith(f"  shoestring {name}") for example in examples)


def commands():
    """Every verb and sub-verb: the App and how it is reached."""
    for row in VERBS:
        app = importlib.import_module(row.module_name).app
        yield app, (row.name,)
        for name in app:
            yield app[name], (row.name, name)


@pytest.mark.parametrize(("command", "chain"), list(commands()), ids=lambda value: "-".join(map(str, value)))
def test_every_example_parses_and_its_recipe_is_right(command, chain):
    root = verb("shoestring", "")
    root.command(importlib.import_module(f"shoestring.cli.{chain[0]}").app)
    examples = command.help_epilogue.splitlines()[1:]
    assert len(examples) == 2
    for example in examples:
        name, *tokens = shlex.split(example)
        assert (name, *tokens[: len(chain)]) == ("shoestring", *chain)
        function, arguments, settings = parse(root, tokens)
        if settings:
            overrides = settings["overrides"]
            if arguments.kwargs.get("time"):
                overrides["train.time"] = arguments.kwargs["time"]
            if chain == ("finetune",):
                finetune_recipe(arguments.args[0], arguments.kwargs["data"], overrides)
            elif chain == ("distill",):
                given = arguments.kwargs
                distill_recipe(None, given["student"], given["data"], {"teacher": given["teacher"], **overrides})
            elif arguments.args[0] in KNOWN:
                assert chain in (("model", "show"), ("plan",)) and not overrides
            else:
                load_pretrain_recipe(arguments.args[0], overrides)


def test_help_shows_flags_with_defaults_choices_and_what_is_required(capsys):
    _, out, _ = said(capsys, "tokenizer", "train", "--help")
    assert out.startswith("usage: shoestring tokenizer train SOURCE --out PATH [flags]\n")
    flat = " ".join(out.split())
    assert "--vocabulary N size, special tokens included [4096]" in flat
    assert "--on-bad-line stop|skip" in flat and "--no-json" not in flat


def test_the_version_is_printed(capsys):
    from shoestring import __version__

    assert said(capsys, "--version") == (0, f"shoestring {__version__}\n", "")


def test_an_unknown_verb_names_the_nearest(capsys):
    code, out, err = said(capsys, "pretrane")
    assert (code, out) == (2, "")
    assert (
        err == "error: unknown verb pretrane\n  did you mean pretrain?\n  shoestring --help lists the verbs\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recipe"], "shoestring recipe needs one of: list, show, check"),
        (["recipe", "lst"], "shoestring recipe has no lst\n  did you mean list?"),
        (["tokenizer", "train", "stdlib"], "--out"),
        (["tokenizer", "train", "stdlib", "--out", "x", "--vocabulry", "3"], "did you mean --vocabulary?"),
        (["tokenizer", "train", "stdlib", "--out", "x", "--vocabulary", "many"], "many"),
        (["prepare", "stdlib", "--out", "x"], "give either --tokenizer FOLDER or --vocabulary N"),
        (["doctor", "now"], "now"),
        (["data", "make"], "shoestring data make needs KIND\n  it is one of: arithmetic, patterns, comparisons"),
        (["finetune", "x", "--data"], "--data needs a value (command line)"),
        (["pretrain"], "pretrain needs a recipe"),
        (["pretrain", "no-such-recipe"], "there is no recipe 'no-such-recipe'"),
        (["pretrain", "quickstart", "--budget.engine", "streamed"], "streamed layers are frozen"),
        (
            ["pretrain", "quickstart", "--tim", "2m"],
            "unknown flag --tim (command line)\n  did you mean --time?",
        ),
        (["pretrain", "quickstart", "--time", "soon"], "train.time: expected a duration such as 2m"),
        (["pretrain", "quickstart", "--train.steps"], "--train.steps needs a value"),
        (["pretrain", "quickstart", "--seed", "1" + "0" * 30], "seed: expected a number of at most 922337203685477"),
        (["pretrain", "quickstart", "--train.steps", "9" * 5000], "a number of 5,000 digits; at most 100 are possible"),
        (["pretrain", "quickstart", "--train.steps", "1__0"], 'train.steps: expected a whole number, found "1__0"'),
        (["pretrain", "quickstart", "--train.steps", "1_"], 'train.steps: expected a whole number, found "1_"'),
        (["pretrain", "quickstart", "--model.width", "[" * 100_000], "nested more than 100 times"),
        (["pretrain", "quickstart", f"--{'.'.join('a' * 5000)}", "1"], "has 5,000 parts"),
        (["pretrain", "quickstart", "--optimizer.betas.²", "1"], "optimizer.betas: expected a list"),
        (["pretrain", "quickstart", "--threads", "1000000"], "threads: expected a number of at most 1024"),
        (["pretrain", "n" * 5000], "there is no recipe"),
        (["pretrain", "quickstart", "--out", "n" * 300], "File name too long"),
        (["pretrain", "quickstart", "--out", os.fsdecode(b"a\xff")], "is not UTF-8 text"),
        (["generate", "n" * 5000, "--prompt", "x"], "no model"),
        (["generate", "~nobody-of-this-name/x", "--prompt", "x"], "no model"),
        (["data", "show", "n" * 5000, "--model", "x"], "no model"),
    ],
)
def test_a_mistake_is_one_error_on_stderr_and_exit_2(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and sentence in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_issues_own_example_of_a_config_error(capsys):
    assert said(capsys, "pretrain", "elite-112m", "--train.learning_rat", "1") == (
        2,
        "",
        "error: unknown setting train.learning_rat (command line)\n"
        "  did you mean optimizer.learning_rate?\n"
        "  shoestring recipe show elite-112m lists all settings\n",
    )


def test_place_and_hint_of_an_error_are_printed(capsys, monkeypatch):
    def fail(tokens):
        raise DataError("not a JSON object", where="mine.jsonl:418", hint="--on-bad-line skip counts them")

    monkeypatch.setattr(cli, "_run", fail)
    code, _, err = said(capsys, "x")
    assert (code, err) == (2, "error: mine.jsonl:418: not a JSON object\n  --on-bad-line skip counts them\n")


def test_an_interrupt_is_exit_130_with_a_short_line(capsys, monkeypatch):
    def interrupt(tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert said(capsys, "x") == (130, "", "interrupted\n")


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def fail(tokens):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["x"])


def test_a_reader_that_leaves_early_is_not_complained_about():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "shoestring", "recipe", "show", "quickstart"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_module_and_its_exit_code_work_as_a_process():
    done = shoestring("recipe", "show", "quikstart")
    assert done.returncode == 2 and done.stderr.startswith("error: there is no recipe 'quikstart'")
    assert "did you mean quickstart?" in done.stderr


def test_an_output_that_lacks_a_character_does_not_end_the_run():
    done = shoestring(
        "recipe",
        "show",
        "quickstart",
        "--description",
        "café ━",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and "description" in done.stdout


def test_a_verb_receives_settings_only_if_it_takes_them(capsys):
    plain, seen = verb("plain", "A verb."), []

    @plain.default
    def run(name: str = "x") -> None:
        seen.append(name)

    run_verb(plain, ["plain", "y"])
    assert seen == ["y"]
    with pytest.raises(ConfigError, match="unknown flag --train.steps"):
        run_verb(plain, ["plain", "--train.steps", "3"])


def test_recipe_show_is_complete_and_checks_itself(capsys, tmp_path):
    code, out, _ = said(capsys, "recipe", "show", "quickstart", "--train.steps", "7")
    assert code == 0 and "steps: 7" in out and "learning_rate:" in out
    (tmp_path / "mine.yaml").write_text(out)
    assert said(capsys, "recipe", "check", str(tmp_path / "mine.yaml"))[0] == 0
    assert said(capsys, "recipe", "show", str(tmp_path / "mine.yaml"))[1] == out


def test_every_built_in_recipe_is_listed_and_right(capsys):
    code, out, _ = said(capsys, "recipe", "list", "--json")
    names = list(json.loads(out)["recipes"])
    assert code == 0 and {"quickstart", "quickstart-smoke", "elite-112m", "elite-112m-smoke"} <= set(names)
    for name in names:
        assert said(capsys, "recipe", "check", name)[0] == 0


@pytest.fixture
def measured(monkeypatch):
    """A machine whose figures are known; -> the loads that others put on it, and whether peaks were measured again."""
    from shoestring.core import machine, speeds
    from shoestring.core.matmul import TABLE

    peaks = {"float32": 2e11, "bfloat16": 8e11}
    monkeypatch.setattr(speeds, "matrix_peak", lambda dtype, device, refresh: peaks[dtype])
    monkeypatch.setattr(speeds, "disk_read_speed", lambda: 2e9)
    rates = {"library": "onednn", "gflops": {"torch": 90.4, "onednn": 123.0}, "threads": 2}
    monkeypatch.setattr(TABLE, "entry", lambda kind: rates)
    monkeypatch.setattr(TABLE, "forced", "")
    load, again = [0.0], []
    monkeypatch.setattr(machine, "others_load", lambda: load[0])
    monkeypatch.setattr(speeds, "memory_bandwidth", lambda refresh: again.append(refresh) or 4e10)
    return load, again, rates


def test_doctor_says_five_lines_a_table_and_one_json_object(capsys, measured):
    from shoestring.kernels import allocator

    rates = measured[2]
    code, out, _ = said(capsys, "doctor")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert names == ["processor", "memory", "disk", "torch", "training", "matmul"]
    assert "float32: oneDNN 10 kinds of product; bfloat16: oneDNN 10" in out
    assert out.count("oneDNN 123, ") == 20 and max(map(len, out.splitlines()[6:])) < 80
    assert "200 GFLOP/s" in out and "bfloat16" in out
    installed = allocator.installed()
    assert ("tensors from the caching allocator" in out) is installed
    figures = json.loads(said(capsys, "doctor", "--json")[1])
    assert figures["caching_allocator"] is installed
    # half of 2e11 FLOP/s over 6 operations for each of 10M parameters
    assert figures["tokens_per_second"] == pytest.approx(1666.67, abs=0.01)
    assert figures["matmul"]["kinds"]["float32 weight gradient 768x768x768"] == rates


def test_doctor_notes_what_other_programs_take_and_keeps_what_it_knows_from_a_quieter_time(capsys, measured):
    load, again, _ = measured
    for share in (0.02, 0.55, None):
        load[0] = share
        code, out, _ = said(capsys, "doctor")
        assert code == 0 and ("55% of the processor" in out) is (share == 0.55)
        assert json.loads(said(capsys, "doctor", "--json")[1])["load_of_others"] == share
    assert again == [True, True, False, False, True, True]


@pytest.mark.parametrize("words", [["pretrain"], ["tokenizer", "train"], []])
def test_help_and_a_verb_is_the_verbs_help(capsys, words):
    assert said(capsys, "help", *words) == said(capsys, *words, "--help")
    assert said(capsys, "help", "pretrane")[2].startswith("error: unknown verb pretrane\n  did you mean pretrain?")


def test_the_tab_key_completes_verbs_flags_and_choices(capsys, tmp_path):
    for shell in ("zsh", "fish"):
        code, out, _ = said(capsys, "completion", shell)
        assert code == 0 and "finetune" in out and "max-tokens" in out
    (tmp_path / "script").write_text(said(capsys, "completion", "bash")[1])
    asked = [["shoestring", "fine"], ["shoestring", "generate", "m", "--max"], ["shoestring", "data", "make", "arith"]]
    lines = [f"source {tmp_path / 'script'}"]
    for words in asked:
        lines += [f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _shoestring"]
        lines += ['echo "${COMPREPLY[@]}"']
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert [line.split() for line in done.stdout.splitlines()] == [["finetune"], ["--max-tokens"], ["arithmetic"]], (
        done.stderr
    )
