"""The house plan's directions: a room imports only smaller numbers, and light doors stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "shoestring"
ROOMS = {
    "core": 0,
    "data": 1, "kernels": 1,
    "nn": 2,
    "models": 3,
    "plan": 4,
    "train": 5, "generate": 5,
    "offload": 6, "evaluate": 6, "export": 6,
    "pretraining": 7, "finetuning": 7, "compression": 7,
    "serve": 8, "search": 8, "laptops": 8, "forecast": 8,
    "cli": 9,
}  # fmt: skip
JUDGES = {"transformers", "peft"}
HEAVY = {"torch", "numpy", "pydantic", "yaml", "rich", "cyclopts", "tokenizers"}


def imported_names(tree: ast.AST, package: list[str]) -> list[tuple[int, str]]:
    """Every module that an import statement or call names, at any depth, with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def homes(source: Path) -> dict[str, str]:
    """Where the package's own names are defined: its table of lazy imports, read and not run."""
    file = source / "__init__.py"
    if not file.is_file():
        return {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["_HOMES"]:
            return ast.literal_eval(node.value)
    return {}


def violations(file: Path, source: Path) -> list[str]:
    """What a file imports against the plan, also through `import shoestring` and the names that it brings."""
    parts = file.relative_to(source).parts
    room = parts[0] if len(parts) > 1 else None
    wrong = []
    tree, lazy = ast.parse(file.read_text()), homes(source)
    names = imported_names(tree, ["shoestring", *parts[:-1]])
    if any(name == "shoestring" for _, name in names):  # then any of its names may be used
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        names += [
            (node.lineno, f"shoestring.{node.attr}") for node in used if getattr(node.value, "id", "") == "shoestring"
        ]
    for line, name in names:
        name = lazy.get(name.removeprefix("shoestring."), name)
        words = name.split(".")
        if words[0] in JUDGES:
            wrong.append(f"{file.name}:{line}: {name} is the judge in tests, never imported by the package")
        if words[0] != "shoestring" or len(words) < 2 or room is None:
            continue
        other = words[1]
        if other in ROOMS and other != room and ROOMS[other] >= ROOMS[room]:
            wrong.append(f"{file.name}:{line}: room {room} ({ROOMS[room]}) imports {other} ({ROOMS[other]})")
    return wrong


def test_no_room_imports_an_equal_or_larger_one():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 20 and homes(SOURCE)["load"] == "shoestring.offload.load"
    assert [wrong for file in files for wrong in violations(file, SOURCE)] == []


def test_every_folder_with_code_is_a_room_of_the_plan():
    folders = {path.parent.name for path in SOURCE.glob("*/*.py")}
    assert folders - set(ROOMS) == set()


@pytest.mark.parametrize(
    "text",
    [
        "from shoestring.train.loop import train",
        "import shoestring.cli.main",
        "def f():\n    from shoestring.models import decoder",
        "from shoestring import nn, generate",
        "from ..models.decoder import Decoder",
        "import importlib\nimportlib.import_module('shoestring.serve.terminal')",
        "def f():\n    import transformers",
        "from peft import LoraConfig",
        "import shoestring\ndef f():\n    return shoestring.finetune",
        "from shoestring import load",
        "def f():\n    from shoestring import pretrain as train",
    ],
)
def test_a_file_that_breaks_the_plan_is_caught(tmp_path, text):
    file = tmp_path / "nn" / "bad.py"
    file.parent.mkdir()
    file.write_text(text)
    (tmp_path / "__init__.py").write_text((SOURCE / "__init__.py").read_text())
    assert violations(file, tmp_path)


def test_every_name_of_the_package_is_in_its_table_and_is_a_function_with_a_signature():
    import inspect

    import shoestring

    assert {*homes(SOURCE), "__version__"} == set(shoestring.__all__) == set(dir(shoestring))
    for name, module in homes(SOURCE).items():
        function = getattr(shoestring, name)
        assert inspect.isfunction(function) and function.__name__ == name and function.__module__ == module
        assert inspect.signature(function).parameters and function.__doc__


def test_no_module_replaces_its_class():
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            assert not any(getattr(target, "attr", "") == "__class__" for target in targets), file


def test_importing_a_module_changes_no_other():
    """Nothing is registered by being imported: no table of one module grows when another is loaded."""
    changed = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True)
    assert json.loads(changed.stdout) == []


_IMPORTS = """
import importlib, json, pkgutil, sys
from importlib.machinery import SourceFileLoader
import shoestring

def tables(module):
    found = {}
    for key, value in list(vars(module).items()):
        if isinstance(value, (dict, list, set)) and not key.startswith("__"):
            found[key] = len(value)
        elif callable(value) and hasattr(value, "registry"):
            found[key] = len(value.registry)
    return found

run, finished, changed = SourceFileLoader.exec_module, {}, []

def exec_module(loader, module):
    run(loader, module)
    for name, before in finished.items():
        now = tables(sys.modules[name])
        changed.extend(f"{module.__name__} changed {name}.{key}" for key in now if now[key] != before.get(key))
        finished[name] = now
    if module.__name__.startswith("shoestring."):
        finished[module.__name__] = tables(module)

SourceFileLoader.exec_module = exec_module
for info in pkgutil.walk_packages(shoestring.__path__, "shoestring."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
assert len(finished) > 150
print(json.dumps(sorted(set(changed))))
"""


def test_allowed_imports_are_not_caught(tmp_path):
    file = tmp_path / "nn" / "good.py"
    file.parent.mkdir()
    text = "import torch\nfrom shoestring.core.errors import ConfigError\nfrom shoestring.nn.rope import x\n"
    file.write_text(text + "from . import y\n")
    assert violations(file, tmp_path) == []


def modules_after(code: str) -> set[str]:
    """Names of the top packages that are loaded after `code` ran in a fresh interpreter."""
    shown = f"import sys\n{code}\nprint('\\n'.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    assert modules_after("import shoestring") & HEAVY == set()


def test_the_packages_names_are_found_on_first_use():
    code = "import shoestring\nassert shoestring.load and shoestring.pretrain and 'load' in dir(shoestring)"
    assert "torch" in modules_after(code)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        import shoestring

        _ = shoestring.laod


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["no-such-verb"]])
def test_the_overview_needs_neither_torch_nor_a_parser(arguments):
    loaded = modules_after(f"from shoestring.cli.main import main\nmain({arguments})")
    assert loaded & HEAVY == set()


def test_every_verbs_help_comes_without_torch():
    code = (
        "from shoestring.cli.main import main\nfrom shoestring.cli.verbs import VERBS\n"
        "for verb in VERBS: assert main([verb.name, '--help']) == 0"
    )
    assert "torch" not in modules_after(code)


def test_configs_and_recipes_are_checked_without_torch():
    configs = [f"shoestring.{file.parent.name}.config" for file in SOURCE.glob("*/config.py")]
    assert "shoestring.core.config" in configs and "shoestring.train.config" in configs
    lines = [f"import {name}" for name in [*configs, "shoestring.core.yaml_document", "shoestring.train.recipe_files"]]
    assert modules_after("\n".join(lines)) & {"torch", "transformers", "tokenizers", "pyarrow"} == set()


def test_a_config_error_comes_without_torch(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  learning_rat: 1\n")
    code = f"from shoestring.cli.main import main\nassert main(['recipe', 'check', {str(recipe)!r}]) == 2"
    assert "torch" not in modules_after(code)
