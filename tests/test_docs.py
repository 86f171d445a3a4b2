"""The docs' commands run as written, page by page from top to bottom, each page in a folder of its own.

What would be fetched or train long is replaced: the known model and the folders that stand for a reader's own by a tiny
random model, the standard library by a little text, recipes by their smoke twins, lengths by a few steps.
"""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.plan import calibration
from tests.models.gguf.gguf_files import tiny_model, write_gguf
from tests.test_readme import ROOT, command_lines, desk

DOCS = ROOT / "docs"
assert desk  # a fixture, shared with the README's tests
REPLACED = {
    "smollm2-135m": "../chats", "qwen2.5-3b-folder": "../chats", "stdlib": "my-texts", "quickstart": "quickstart-smoke",
    "lazy-finetune": "lazy-finetune-smoke", "elite-112m": "elite-112m-smoke", "runs/finetune-1": "../chats",
}  # fmt: skip
FEWER = {
    "--n": "60", "--steps": "2", "--train.steps": "3", "--max-tokens": "4", "--time": "1s", "--vocabulary": "512",
    "--examples": "2", "--memory": "64GB", "--batch-size": "2",
}  # fmt: skip
# Two loggers, one of which wants a service, a server, which goes on for ever, what npm fetches, and several processes
# (tests/train/test_launch.py, tests/laptops); that the commands parse is tested with all others.
NOT_RUN = (
    "--log.tensorboard", "--log.wandb", "shoestring serve", "--to web", "--gpus", "--ranks", "--over",
    "shoestring join",
)  # fmt: skip
PAGES = [page.name for page in sorted(DOCS.glob("*.md")) if page.name != "performance.md"]  # benchmarks


def commands(page: Path) -> list[tuple[str, str]]:
    """("sh", a command) or ("python", a block), in order; commands in indented blocks too."""
    found = []
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$|^    (shoestring [^\n]*)$", text, re.DOTALL | re.MULTILINE):
        language, content, indented = match.groups()
        if indented or language == "sh":
            found += [("sh", line) for line in command_lines(indented or content)]
        elif language == "python":
            found.append(("python", content))
    return found


def smaller(tokens: list[str]) -> list[str]:
    """The same command, on what a test has."""
    written = list(tokens)
    pairs = zip(["", *tokens], tokens, strict=False)
    tokens = [FEWER.get(before, REPLACED.get(token, token)) for before, token in pairs]
    verb = tokens[0]
    if verb == "pretrain" and "--resume" not in tokens:
        if "--time" in tokens:
            del tokens[(at := tokens.index("--time")) : at + 2]
        tokens += [] if "--data.source" in tokens else ["--data.source", "my-texts"]
        tokens += [] if "--train.steps" in tokens else ["--train.steps", "3"]
    elif verb == "evaluate":
        tokens += ["--items", "1"]
    elif verb == "finetune":
        if "--time" in tokens:
            at = tokens.index("--time")
            tokens[at : at + 2] = ["--steps", "2"]
        elif "--steps" not in tokens and "--resume" not in tokens:
            tokens += ["--steps", "2"]
        tokens += ["--train.answers", "1"]
        if "--evaluate" in tokens:
            tokens += ["--evaluate.items", "1", "--evaluate.only", "[copying]"]
    elif verb == "distill":
        if "--student" in tokens:
            tokens[tokens.index("--student") + 1] = "../chats"
        tokens += ["--train.batch_tokens", "512", "--train.sequence_length", "512", "--train.evaluate_examples", "4"]
        tokens += ["--distill.new_tokens", "4"] if "--on-policy" in tokens else []
    elif verb == "quantize":
        if "--group" not in tokens:
            tokens += ["--group", "16"]
        elif tokens[(at := tokens.index("--group") + 1)] != "0":
            tokens[at] = "16"
        if "--rows" in tokens:
            del tokens[(at := tokens.index("--rows")) : at + 2]
        tokens += ["--rows", "4", "--context", "64"]
    elif verb == "search":
        for flag in ("--trials", "--timeout", "--trial-tokens"):
            if flag in tokens:
                del tokens[(at := tokens.index(flag)) : at + 2]
        tokens += ["--trials", "1"] if "--resume" not in tokens else []
        tokens += ["--data.source", "my-texts"] if "--resume" not in tokens and "--data.source" not in tokens else []
    elif verb == "compress":
        tokens += ["--rows", "4", "--context", "64"]
    elif verb == "prune":
        for flag, size in (("--layers", "1"), ("--feed-forward", "32"), ("--heads", "2"), ("--width", "24")):
            if flag in tokens:
                tokens[tokens.index(flag) + 1] = size
        if "--recover" in tokens:
            tokens[tokens.index("--recover") + 1] = "2"
        tokens += ["--rows", "4", "--context", "64"]
    elif verb == "factorize":
        at = tokens.index("--parameters") if "--parameters" in tokens else tokens.index("--rank")
        tokens[at : at + 2] = ["--rank", "4"] if tokens[at] == "--rank" else ["--parameters", "0.97x"]
        tokens += ["--rows", "4", "--context", "64"] if "--calibrate" in tokens else []
    elif verb == "plan" and "quantize" in tokens:
        tokens += ["--quantize.group", "16"]
    elif verb == "merge" and "--calibrate" in tokens:
        tokens += ["--rows", "4", "--context", "64"]
    elif verb in ("recipe", "model"):  # nothing is trained or fetched
        tokens = [REPLACED[token] if token == "smollm2-135m" else token for token in written]
    return tokens


@pytest.fixture
def page_folder(desk, tmp_path, monkeypatch) -> Path:
    """What a reader of any page has: text, rows under several names, the model of the README beside."""
    shutil.copytree(desk / "my-texts", tmp_path / "page" / "my-texts")
    (tmp_path / "chats").symlink_to(desk / "chats")
    folder = tmp_path / "page"
    rows = [f'{{"prompt": "{n} + 1 = ?", "completion": "{n + 1}"}}' for n in range(60)]
    for name in ("mixed", "conversations", "mine"):
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "sums").mkdir()
    shutil.copy(folder / "mine.jsonl", folder / "sums" / "train.jsonl")
    (folder / "space.yaml").write_text("optimizer.learning_rate: {log: [1e-4, 1e-2]}\n")
    (folder / "notes.txt").write_text("A note of mine.\n" * 50)
    (folder / "qa.csv").write_text('question,answer\nHow do I reset it?,"Hold the button, then let go."\n' * 3)
    write_gguf(folder / "model.gguf", tiny_model("qwen3"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(calibration, "_FILE", str(tmp_path / "calibration.json"))  # not that of other tests
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    return folder


@pytest.mark.parametrize("name", [name for name in PAGES if any(kind == "sh" for kind, _ in commands(DOCS / name))])
def test_the_commands_of_a_page_run_in_order(name, page_folder, monkeypatch, capsys):
    ran = 0
    for kind, content in commands(DOCS / name):
        if kind == "python" and name in ("elsewhere.md", "export.md", "report.md"):  # on what the commands left
            exec(compile(content.replace('"smollm2-135m"', '"../chats"'), name, "exec"), {})
            continue
        if kind == "python" and name in ("compression.md", "distill.md"):
            content = content.replace("smollm2-135m", "../chats").replace("group=64", "group=16")
            content = content.replace('"0.3x", calibrate="stdlib"', '"0.5x", calibrate="my-texts", rows=4, context=64')
            exec(compile(content, name, "exec"), {})
            ran += 1
            continue
        program, *tokens = shlex.split(content) if kind == "sh" else [""]
        if program != "shoestring" or any(flag in content for flag in NOT_RUN):
            continue
        tokens = smaller(tokens)
        if tokens[:2] == ["data", "make"] or tokens[0] == "prepare":  # what the page makes, others stand in for
            shutil.rmtree(Path(tokens[tokens.index("--out") + 1]), ignore_errors=True)
        if tokens[:2] == ["pretrain", "--resume"]:
            first = ["pretrain", "quickstart-smoke", "--train.steps", "2", "--data.source", "my-texts"]
            assert main([*first, "--out", tokens[2]]) == 0
        code = main(tokens)
        assert code == 0, f"{name}: {content}\n{capsys.readouterr().err}"
        ran += 1
    assert ran or name == "map.md"


def test_a_command_that_fails_would_be_found(page_folder):
    assert main(smaller(shlex.split("finetune smollm2-135m --data nothing.jsonl --time 5m"))) == 2
