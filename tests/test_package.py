"""`import shoestring`: its names, their signatures, and the short names of settings in Python."""

import inspect
import re
from pathlib import Path

import pytest

import shoestring
from shoestring.core.errors import ConfigError


def test_the_package_lists_its_names_and_nothing_else():
    assert dir(shoestring) == sorted(shoestring.__all__)
    assert set(dir(shoestring)) == {
        "__version__", "compare", "compress", "distill", "evaluate_over", "factorize", "finetune", "finetune_over",
        "generate_over", "join", "load", "make_plan", "merge", "perplexity", "perplexity_over", "prepare_dataset",
        "pretrain", "pretrain_over", "prune", "quantize", "report",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("finetune", "model data resume overrides memory batch_size method rank steps epochs time compute columns out"),
        ("finetune", "preserve on_bad_line evaluate"),
        ("pretrain", "recipe resume overrides time memory out"),
        ("load", "model device dtype memory"),
        ("make_plan", "recipe_or_model job memory gpu_memory time machine largest overrides"),
        ("perplexity", "model data context stride examples"),
        ("distill", "teacher student data recipe resume divergence beta temperature labels on_policy cache_samples"),
        ("merge", "adapter out dense calibrate dtype columns"),
        ("factorize", "model out parameters rank calibrate dense rows context dtype"),
        ("compress", "model out target keep calibrate time suite rows context memory"),
        ("prune", "model out calibrate sparsity pattern method parameters layers feed_forward heads width rounds"),
        ("finetune_over", "machines model data resume overrides token listen wait"),
        ("pretrain_over", "machines recipe resume overrides token listen wait"),
        ("generate_over", "machines model prompts token listen wait special_tokens"),
        ("perplexity_over", "machines model data context stride examples on_bad_line columns token listen wait"),
        ("evaluate_over", "machines model side only items token listen wait"),
        ("join", "address token name memory model"),
        ("report", "runs out"),
        ("quantize", "model out bits group method calibrate symmetric activations rows context dtype"),
    ],
)
def test_help_shows_a_functions_signature(name, expected):
    function = getattr(shoestring, name)
    assert inspect.isfunction(function) and inspect.getdoc(function)
    assert set(expected.split()) <= set(inspect.signature(function).parameters)


def test_a_short_name_is_the_setting_that_it_stands_for():
    """The error shows the value, read under the setting's own name, before anything is done."""
    with pytest.raises(ConfigError, match=r"adapter.rank: expected a number above 0, found -8"):
        shoestring.finetune("nowhere", "mine.jsonl", rank=-8)
    with pytest.raises(ConfigError, match="precision.compute: expected one of: .*float16"):
        shoestring.finetune("nowhere", "mine.jsonl", compute="float8")
    with pytest.raises(ConfigError, match="train.time: expected a duration"):
        shoestring.pretrain("quickstart-smoke", time="soon")


def test_two_names_of_one_setting_may_not_say_different_things():
    with pytest.raises(ConfigError, match="rank and adapter.rank say different things"):
        shoestring.finetune("nowhere", "mine.jsonl", rank=8, adapter__rank=16)
    with pytest.raises(ConfigError, match=r"--rank and --adapter.rank say different things \(command line\)"):
        from shoestring.cli.finetune import finetune

        finetune("nowhere", data="mine.jsonl", rank=8, overrides={"adapter.rank": "16"})


def test_other_tools_names_are_suggested_in_python_too():
    with pytest.raises(ConfigError, match="did you mean adapter.rank"):
        shoestring.finetune("nowhere", "mine.jsonl", lora_r=8)


def test_an_extra_brings_only_what_the_package_imports():
    root = Path(__file__).parents[1]
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = dict(re.findall(r"^(\w+) = \[(.*?)\]$", section, re.DOTALL | re.MULTILINE))
    assert set(extras) == {"train", "memory", "data", "eval", "guided", "serve", "export", "search", "dev"}
    sources = "".join(file.read_text(encoding="utf-8") for file in (root / "src").rglob("*.py"))
    for extra in set(extras) - {"dev"}:
        for package in re.findall(r'"([\w-]+)', extras[extra]):
            module = package.removesuffix("-cpu").replace("-", "_")
            imported = rf"import .*\b{module}\b|from [\w.]*{module}[\w.]* import|import_module\(\"{module}\""
            assert re.search(imported, sources), package
    promised = re.search(r'^description = "(.*)"$', project, re.MULTILINE)[1]
    assert not re.search("compress|serve|quantize|export", promised)
