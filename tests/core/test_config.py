"""Each mistake in a recipe is one sentence with its place, what was expected, and the nearest valid key."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from shoestring.core.config import Config, dump_yaml, load_config
from shoestring.core.config_keys import nearest_key, setting_keys
from shoestring.core.errors import ConfigError
from shoestring.core.given import GIVEN
from shoestring.core.units import Bytes, Seconds
from shoestring.core.yaml_document import YamlDocument


class GQA(Config):
    kind: Literal["gqa"] = "gqa"
    heads: int = 4


class MLA(Config):
    kind: Literal["mla"] = "mla"
    rank: int = 8


class Model(Config):
    attention: Annotated[GQA | MLA, Field(discriminator="kind")] = GQA()
    dims: tuple[int, ...] = (1, 2)
    name: str = "tiny"
    path: Path | None = None


class Optimizer(Config):
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Train(Config):
    steps: int | None = None
    time: Seconds | None = None
    memory: Bytes | None = None
    batch_tokens: int = 8
    mode: Literal["fast", "exact"] = "fast"
    shuffle: bool = True
    rows: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _one_length(self):
        if self.steps and self.time:
            raise ValueError("give one of steps and time, not both")
        return self


class Settings(Config):
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    seed: int = 1


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="r.yaml"):
        Path(name).write_text(text)
        return Path(name)

    return write


def error_of(source, overrides=None, hint=None):
    typed = GIVEN.set("(command line)")
    try:
        with pytest.raises(ConfigError) as caught:
            load_config(Settings, source, overrides, hint)
    finally:
        GIVEN.reset(typed)
    return str(caught.value)


def test_a_right_recipe_is_read_with_units_lists_and_kinds(recipe):
    text = "model: {attention: {kind: mla, rank: 3}, dims: [4, 5], path: a/b}\n"
    text += "train:\n  memory: 4GB\n  time: 1h30m\n"
    settings = load_config(Settings, recipe(text + "optimizer: {learning_rate: 1e-3}\nseed: 1_000\n"))
    assert settings.model == Model(attention=MLA(rank=3), dims=(4, 5), path=Path("a/b"))
    assert (settings.train.memory, settings.train.time) == (4 * 10**9, 5400.0)
    assert (settings.optimizer.learning_rate, settings.seed) == (0.001, 1000)


def test_an_unknown_setting_names_the_nearest_of_the_whole_tree(recipe):
    source = recipe("seed: 3\ntrain:\n  steps: 5\n  learning_rat: 1\n")
    assert error_of(source) == (
        "r.yaml:4: unknown setting train.learning_rat\n  did you mean optimizer.learning_rate?"
    )


def test_an_unknown_setting_on_the_command_line_says_so(recipe):
    hint = "shoestring recipe show r lists all settings"
    assert error_of(recipe(""), {"train.learning_rat": "1"}, hint) == (
        "unknown setting train.learning_rat (command line)\n"
        "  did you mean optimizer.learning_rate?\n"
        "  shoestring recipe show r lists all settings"
    )


def test_a_misspelt_section_is_named_as_typed(recipe):
    assert error_of(recipe(""), {"optimiser.learning_rate": "1"}) == (
        "unknown setting optimiser.learning_rate (command line)\n  did you mean optimizer.learning_rate?"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("  steps: '4'", 'train.steps: expected a whole number, found "4"'),
        ("  steps: 4.5", "train.steps: expected a whole number, found 4.5"),
        ("  steps: true", "train.steps: expected a whole number, found true"),
        ("  shuffle: 1", "train.shuffle: expected true or false, found 1"),
        ("  shuffle: no", 'train.shuffle: expected true or false, found "no"'),
        ("  mode: exac", 'train.mode: expected one of: fast, exact, found "exac"\n  did you mean exact?'),
        ("  rows: many", 'train.rows: expected a whole number or auto, found "many"'),
        ("  memory: lots", "train.memory: expected a size such as 4GB, 600MB or 512MiB, found 'lots'"),
        ("  batch_tokens: [1]", "train.batch_tokens: expected a whole number, found [1]"),
    ],
)
def test_a_wrong_type_says_what_was_expected_and_found(recipe, line, sentence):
    assert error_of(recipe("seed: 3\ntrain:\n" + line)) == f"r.yaml:3: {sentence}"


def test_limits_lists_and_sections_are_explained(recipe):
    source = recipe("optimizer:\n  learning_rate: -1\n  betas: [0.9]\nmodel: 3\n")
    assert error_of(source).splitlines() == [
        "3 problems in r.yaml",
        "  r.yaml:2: optimizer.learning_rate: expected a number above 0, found -1",
        "  r.yaml:3: optimizer.betas: expected more items, found [0.9]",
        "  r.yaml:4: model: expected a section of settings, found 3",
    ]


def test_an_impossible_combination_speaks_in_the_validators_words(recipe):
    source = recipe("seed: 3\ntrain:\n  steps: 5\n  time: 2m\n")
    assert error_of(source) == "r.yaml:2: train: give one of steps and time, not both"


def test_an_unknown_kind_lists_the_kinds(recipe):
    source = recipe("model:\n  attention:\n    kind: gqaa\n")
    assert error_of(source) == (
        'r.yaml:3: model.attention.kind: unknown kind "gqaa"; there are: gqa, mla\n  did you mean gqa?'
    )


def test_a_missing_kind_lists_the_kinds(recipe):
    source = recipe("model:\n  attention:\n    heads: 2\n")
    assert error_of(source) == "r.yaml:2: model.attention needs a kind; there are: gqa, mla"


def test_a_setting_of_another_kind_is_told_apart_from_an_unknown_one(recipe):
    source = recipe("model:\n  attention: {kind: mla, heads: 2}\n")
    assert error_of(source) == "r.yaml:2: unknown setting model.attention.heads for kind mla"


def test_a_missing_setting_is_named():
    class Needs(Config):
        data: str

    with pytest.raises(ConfigError, match="missing setting data"):
        load_config(Needs, YamlDocument({}))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\ntrain:\n  steps: 2\n  steps: 3\n", "r.yaml:4: train.steps is set twice, first on line 3"),
        ("seed: 1\ntrain: [1\n", "r.yaml:3: not valid YAML: did not find expected ',' or ']'"),
        ("- 1\n", "r.yaml:1: expected settings (`key: value` lines) at the top of this file"),
        ("a: &x 1\nb: *x\n", "r.yaml:1: aliases (`*name`) are not supported in recipes"),
        ("a: !!python/object:os.system x\n", "r.yaml:1: tags such as"),
        ("a: 1\n<<: {b: 2}\n", "r.yaml:2: merge keys (`<<`) are not supported; use `extends: NAME`"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(recipe, text, sentence):
    assert error_of(recipe(text)).startswith(sentence)


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("seed: 1\nname: café\n".encode("latin-1"))
    assert f"{path}:2: not UTF-8 text" in error_of(path)


def test_a_missing_file_is_named(tmp_path):
    assert error_of(tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such file"


def test_extends_merges_and_errors_name_the_file_at_fault(recipe):
    recipe("train:\n  steps: 5\n  batch_token: 3\nseed: 4\n", "base.yaml")
    child = recipe("extends: base\ntrain:\n  steps: 6\n", "child.yaml")
    hint = "did you mean train.batch_tokens?"
    assert error_of(child) == f"base.yaml:3: unknown setting train.batch_token\n  {hint}"
    recipe("train:\n  steps: 5\n  batch_tokens: 3\nseed: 4\n", "base.yaml")
    settings = load_config(Settings, child)
    assert (settings.train.steps, settings.train.batch_tokens, settings.seed) == (6, 3, 4)


def test_extending_with_another_kind_replaces_the_section(recipe):
    recipe("model: {attention: {kind: gqa, heads: 2}}\n", "base.yaml")
    child = recipe("extends: base\nmodel: {attention: {kind: mla, rank: 2}}\n", "child.yaml")
    assert load_config(Settings, child).model.attention == MLA(rank=2)


def test_a_recipe_that_extends_itself_is_refused(recipe):
    recipe("extends: b\n", "a.yaml")
    recipe("extends: a\n", "b.yaml")
    assert "extends itself" in error_of(Path("a.yaml"))


def test_overrides_are_yaml_values_and_win(recipe):
    overrides = {"model.dims": "[7, 8]", "train.steps": "1e3", "train.time": "null"}
    overrides |= {"model.name": "a: b", "seed": "2"}
    settings = load_config(Settings, recipe("train: {time: 2m}\nseed: 1\n"), overrides)
    assert (settings.model.dims, settings.train.steps, settings.train.time) == ((7, 8), 1000, None)
    assert (settings.model.name, settings.seed) == ("a: b", 2)


def test_an_override_below_a_value_is_refused(recipe):
    sentence = "cannot set seed.x: seed is not a section (command line)"
    assert error_of(recipe("seed: 1\n"), {"seed.x": "1"}) == sentence


def test_what_is_written_is_read_back_equal(recipe):
    settings = Settings(
        model=Model(attention=MLA(), name="1e5", path=Path("x")),
        optimizer=Optimizer(learning_rate=1e-05),
        train=Train(time=90.0),
    )
    assert load_config(Settings, recipe(dump_yaml(settings))) == settings


@pytest.mark.parametrize(
    "name", ["no", "1_000", "0x1F", "012", "null", "~", "1e5", "- a", "é: ü", ".inf", ""]
)
def test_text_that_looks_like_something_else_survives_writing(recipe, name):
    assert load_config(Settings, recipe(dump_yaml(Settings(model=Model(name=name))))).model.name == name


def test_settings_written_with_explanations_are_read_back_equal(recipe):
    class Explained(Config):
        name: str = Field("x # y", description="what it is called: a name")
        words: tuple[str, ...] = Field(("a\nb", "'"), description="lines")
        inner: Optimizer = Optimizer()

    text = dump_yaml(Explained(), comments=True)
    assert "# what it is called: a name" in text and text.count("\n") == 5
    assert load_config(Explained, recipe(text)) == Explained()


def test_nearest_key_prefers_the_typed_section_and_gives_up_on_the_absurd():
    keys = setting_keys(Settings)
    assert "model.attention.rank" in keys and "model.attention.heads" in keys
    assert nearest_key("train.step", keys) == "train.steps"
    assert nearest_key("optimizer.lr", keys) == "optimizer.learning_rate"
    assert nearest_key("train.qqqqqq", keys) is None


def test_settings_cannot_be_changed_after_they_are_checked():
    with pytest.raises(Exception, match="frozen"):
        Settings().seed = 2


def test_a_bare_number_of_seconds_or_bytes_asks_for_its_unit():
    from shoestring.pretraining.config import load_pretrain_recipe

    with pytest.raises(ConfigError, match=r"train.time 10: seconds, minutes or hours\?") as raised:
        load_pretrain_recipe("quickstart", {"train.time": "10"})
    assert "write 10s, 10m or 10h" in str(raised.value)
    with pytest.raises(ConfigError, match=r"budget.memory 2: megabytes or gigabytes\?"):
        load_pretrain_recipe("quickstart", {"budget.memory": "2"})
    assert load_pretrain_recipe("quickstart", {"train.time": "10m"}).train.time == 600
    assert load_pretrain_recipe("quickstart", {"train.time": 10}).train.time == 10  # a number in Python is in seconds


def test_what_was_given_is_blamed_and_not_the_file_it_was_given_with(capsys):
    from shoestring.cli.main import main
    from shoestring.pretraining.config import load_pretrain_recipe

    assert main(["recipe", "check", "elite-112m", "--train.batch_tokens", "1000"]) == 2
    said = capsys.readouterr().err
    assert "(command line)" in said and "elite-112m.yaml" not in said
    with pytest.raises(ConfigError, match="in the call") as raised:
        load_pretrain_recipe("elite-112m", {"train.batch_tokens": 1000})
    assert "command line" not in str(raised.value)


def test_a_check_names_the_package_that_a_setting_needs(monkeypatch, capsys):
    from shoestring.cli.main import main
    from shoestring.core import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    assert main(["recipe", "check", "quickstart", "--log.wandb", "mine"]) == 2
    assert "log.wandb needs the package wandb" in capsys.readouterr().err
