"""The README and the docs are true: their commands run or at least parse, their tree is the real one.

The README's blocks run from top to bottom in one folder, with the quickstart's smoke recipe in place of the
two-minute one and a little text in `my-texts`. What is fine-tuned is a tiny random model, for a second.
"""

import contextlib
import filecmp
import importlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.cli.main import main, parse
from shoestring.cli.verb import verb
from shoestring.cli.verbs import VERBS
from shoestring.compression.distill.config import distill_recipe
from shoestring.core.errors import ConfigError
from shoestring.finetuning.config import finetune_recipe, is_finetune_recipe
from shoestring.forecast.config import plan_budget
from shoestring.forecast.opening import RECIPES, check_job
from shoestring.forecast.subject import is_model
from shoestring.laptops.config import load_machines
from shoestring.models.get import get
from shoestring.pretraining.config import load_pretrain_recipe
from shoestring.search.run import planned
from shoestring.train.metrics import read_metrics
from shoestring.train.recipe_files import recipe_job
from tests.finetuning.tiny import chat_model

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a reader has on the disk besides the sources: made by tools, never committed.
MADE = {"runs", "adapters", "build", "dist", "shards", "tokenizers"}


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks in these languages, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [(language, content) for language, content in found if language in languages]


def command_lines(content: str) -> list[str]:
    return [line for line in content.splitlines() if line and not line.startswith("#")]


def tiny(tokens: list[str]) -> list[str]:
    """The same command with the smoke recipe and the little text, in its eight steps, or with a tiny model."""
    if tokens[0] == "finetune":
        return ["chats" if token == "smollm2-135m" else "1s" if token == "5m" else token for token in tokens]
    tokens = ["quickstart-smoke" if token == "quickstart" else token for token in tokens]
    if tokens[0] != "pretrain" or "--help" in tokens or "--resume" in tokens:
        return tokens
    for flag in ("--time", "--train.steps"):
        if flag in tokens:
            del tokens[tokens.index(flag) : tokens.index(flag) + 2]
    return [*tokens, *([] if "--data.source" in tokens else ["--data.source", "my-texts"])]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with something to read in it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my-texts").mkdir()
    for number in range(30):
        text = "".join(f"def f{number}_{i}(x):\n    return {i * number} + x\n\n\n" for i in range(40))
        (folder / "my-texts" / f"{number:02d}.py").write_text(text)
    chat_model(folder / "chats")
    get("smollm2-135m")
    return folder


def test_every_block_of_the_readme_runs(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    said = []
    for language, content in blocks(README, "sh", "python"):
        if language == "python":
            shown = io.StringIO()
            content = content.replace('"quickstart", time="2m"', '"quickstart-smoke", data__source="my-texts"')
            with contextlib.redirect_stdout(shown):
                exec(compile(content, "README.md", "exec"), names)
            said.append(shown.getvalue())
            continue
        for line in command_lines(content):
            program, *tokens = shlex.split(line)
            if program == "make":  # one of them runs this test, the other all of what follows
                continue
            assert program == "shoestring"
            assert main(tiny(tokens)) == 0, f"{line}\n{capsys.readouterr().err}"
            said.append(capsys.readouterr().out)
    text = "\n".join(said)
    assert text.count("Paris") == 3  # asked by the command, in Python, and of the plain module
    assert (desk / "runs/second/latest/model.safetensors").is_file()
    assert (desk / "runs/sums/latest/adapter_model.safetensors").is_file()
    assert (desk / "models/sums/model.safetensors").is_file()
    assert isinstance(names["decoder"], torch.nn.Module)


def test_the_job_of_the_map_trains_stops_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    ((_, content),) = blocks(ROOT / "docs" / "map.md", "python")
    assert len(re.findall(r"^class|^def", content, re.MULTILINE)) == 5 and content.count("\n") <= 85
    written = [line for line in content.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(written) < 60
    names: dict[str, Any] = {"__name__": "sort"}
    exec(compile(content, "docs/map.md", "exec"), names)
    recipe = tmp_path / "sort.yaml"
    recipe.write_text(
        "job: sort\n"
        "model:\n  {vocabulary: 10, width: 32, layers: 1, context: 16, feed_forward: {width: 64},"
        " attention: {heads: 2, kv_heads: 2, head_width: 16}}\n"
        "train: {steps: 40, batch_tokens: 960, checkpoint_every: 20, keep: 9}\n"
        "optimizer: {kind: adamw, learning_rate: 0.01}\n"
    )
    whole = names["sort"](recipe, str(tmp_path / "whole"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 40 and losses[-1] < losses[0] - 0.5
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "step-000040")
    resumed = names["sort"](out=tmp_path / "cut")
    assert resumed.state.step == whole.state.step
    assert filecmp.cmp(whole.checkpoint / "model.safetensors", resumed.checkpoint / "model.safetensors", False)


def test_the_readmes_error_message_is_what_one_sees(capsys):
    (content,) = [content for _, content in blocks(README, "") if content.startswith("$ ")]
    command, _, expected = content.partition("\n")
    assert main(shlex.split(command.removeprefix("$ "))[1:]) == 2
    assert capsys.readouterr().err == expected


def check_command(line: str) -> None:
    """Raises unless the verb, its flags and its recipe's settings exist."""
    program, *tokens = shlex.split(line)
    assert program == "shoestring"
    if not tokens or tokens[0] in ("--help", "--version", "help", "VERB"):
        return
    rows = {row.name: row for row in VERBS}
    assert tokens[0] in rows, f"no verb {tokens[0]}"
    root = verb("shoestring", "")
    app = importlib.import_module(rows[tokens[0]].module_name).app
    if "--help" in tokens or tokens[1:] in ([], *([name] for name in app)):  # the verb is only mentioned
        return
    root.command(app)
    _, arguments, settings = parse(root, tokens)
    recipe = arguments.args[0] if settings and arguments.args else None
    if tokens[0] == "plan":
        check_plan(recipe, arguments.kwargs, settings["overrides"])
        return
    if recipe is not None and not recipe.endswith(".yaml"):
        overrides = settings["overrides"]
        if arguments.kwargs.get("time"):
            overrides["train.time"] = arguments.kwargs["time"]
        if tokens[0] == "finetune" or is_finetune_recipe(recipe):
            finetune_recipe(recipe, arguments.kwargs.get("data"), overrides)
        elif recipe_job(recipe) == "distill":
            distill_recipe(recipe, arguments.kwargs.get("student"), arguments.kwargs.get("data"), overrides)
        else:
            load_pretrain_recipe(recipe, overrides)


def check_plan(name: str | None, flags: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Raises for a job, a size or a setting that there is not; a model's own settings are those of its job."""
    check_job(flags.get("job"))
    plan_budget(flags.get("memory"), flags.get("gpu_memory"), flags.get("time"))
    if name is not None and not is_model(name) and flags.get("job") in (None, recipe_job(name)):
        RECIPES[recipe_job(name)](name, overrides)
    elif flags.get("job") == "finetune":
        finetune_recipe(str(name), None if "data.source" in overrides else "sums/train.jsonl", overrides)
    else:
        assert name is None or all(key.startswith(f"{flags['job']}.") for key in overrides)


def commands_of(page: Path) -> list[str]:
    """All lines of sh blocks, and what stands in `...` and begins with a program of ours."""
    fenced = [line for _, content in blocks(page, "sh") for line in command_lines(content)]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:shoestring|make) [^`]+)`", prose)
    return [*fenced, *inline]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_exists(page):
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands_of(page):
        program, *words = line.split()
        if program == "make":
            assert words[0] in targets, f"{page.name}: {line}"
        elif program == "shoestring":
            try:
                check_command(line)
            except Exception as error:
                raise AssertionError(f"{page.name}: {line}: {error}") from error
        elif program == "python" and words[:1] == ["-m"]:
            assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").is_file(), f"{page.name}: {line}"
        else:
            assert program in ("git", ".", "cd"), f"{page.name}: {line}"


def test_every_recipe_in_the_docs_is_right(tmp_path):
    pages = [page for page in PAGES if page.name not in ("search.md", "laptops.md")]
    recipes = [content for page in pages for _, content in blocks(page, "yaml")]
    spaces = [content for _, content in blocks(ROOT / "docs" / "search.md", "yaml")]
    assert recipes and spaces
    for content in spaces:
        (tmp_path / "space.yaml").write_text(content)
        assert planned("quickstart", tmp_path / "space.yaml", {}, {})[2].parameters
    for _, content in blocks(ROOT / "docs" / "laptops.md", "yaml"):
        (tmp_path / "machines.yaml").write_text(content)
        assert [machine.name for machine in load_machines(tmp_path / "machines.yaml").machines] == ["desk", "anna"]
    for content in recipes:
        (tmp_path / "recipe.yaml").write_text(content)
        load_pretrain_recipe(tmp_path / "recipe.yaml")


def test_the_python_in_the_docs_runs(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    ran = 0
    for page in PAGES[1:]:
        # These have tests of their own.
        if page.name in ("offload.md", "elsewhere.md", "export.md", "compression.md", "distill.md", "report.md"):
            continue
        for _, content in blocks(page, "python"):
            if "lm_eval" in content:  # run by tests/evaluate/test_harness.py
                continue
            if "..." not in content:  # a sketch of something to be written
                exec(compile(re.sub(r"max_tokens=\d+", "max_tokens=3", content), page.name, "exec"), {})
                ran += 1
    assert ran > 1


def test_the_fine_tuning_page_works_as_it_stands(desk, monkeypatch, capsys):
    page = ROOT / "docs/finetune.md"
    (desk / "page").mkdir()
    monkeypatch.chdir(desk / "page")
    (_, shell), *_ = blocks(page, "sh")
    for line in command_lines(shell):
        tokens = [{"smollm2-135m": "../chats", "5m": "1s"}.get(token, token) for token in shlex.split(line)[1:]]
        assert main(tokens) == 0, f"{line}\n{capsys.readouterr().err}"
    (_, content), *_ = blocks(page, "python")
    content = content.replace("smollm2-135m", "../chats").replace('time="5m"', "steps=2")
    exec(compile(content, page.name, "exec"), {})
    assert "runs/finetune-2/" in capsys.readouterr().out


def test_the_python_of_the_page_on_memory_runs(desk, monkeypatch, capsys):
    (desk / "memory").mkdir()
    monkeypatch.chdir(desk / "memory")
    assert main("data make arithmetic --n 60 --seed 1 --out sums".split()) == 0
    for _, content in blocks(ROOT / "docs/offload.md", "python"):
        content = content.replace("smollm2-135m", "../chats").replace("1GB", "8GB").replace("steps=20", "steps=2")
        exec(compile(content, "offload.md", "exec"), {})
    assert "resident" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["shoestring fly", "shoestring pretrain quickstart --train.stepz 3"])
def test_a_command_that_does_not_exist_would_be_found(line):
    with pytest.raises((AssertionError, ConfigError), match="fly|stepz"):
        check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_path_in_the_docs_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def real_tree() -> set[str]:
    """Top-level entries without the hidden and the made ones, and the folders of the package."""
    top = {
        path.name
        for path in ROOT.iterdir()
        if path.name[0] != "." and path.name not in MADE and not path.name.startswith("__")
    }
    rooms = {
        path.name
        for path in (ROOT / "src/shoestring").iterdir()
        if path.is_dir() and (any(path.glob("*.py")) or any(path.glob("*.yaml")))
    }
    return (top - {"src"}) | rooms


def test_the_readmes_tree_is_the_real_one():
    (tree,) = [content for _, content in blocks(README, "") if content.startswith("shoestring/")]
    names = [match[1] for match in re.finditer(r"[├└]── ([\w./]+)", tree)]
    assert names[0] == "src/shoestring/" and len(names) == len(set(names))
    assert {name.rstrip("/") for name in names[1:]} == real_tree()
