"""Every built-in recipe is right, and its smoke variant trains."""

import subprocess
import sys

import pytest

from shoestring.core.errors import ConfigError
from shoestring.train.recipe import list_recipes, load_recipe

NAMES = list(list_recipes())
SMOKE = [name for name in NAMES if name.endswith("-smoke")]


SIZES = {
    "elite-112m": 112_085_760,
    "elite-350m": 361_821_120,
    "velocity-2b": 1_713_639_424,
    "efficientlm": 349_852_696,
    "compact": 77_875_980,
}


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_has_exactly_the_parameters_of_the_system_it_reproduces(name):
    from shoestring.models.builder import build

    config = load_recipe(name).model
    decoder = build(config, device="meta")
    assert config.parameter_count() == sum(p.numel() for p in decoder.parameters()) == SIZES[name]


def test_the_shapes_are_those_of_the_design():
    def shape(name):
        config = load_recipe(name).model
        return config.layers, config.width, config.context, config.vocabulary

    assert shape("elite-112m") == (12, 768, 2048, 49_152)
    assert shape("velocity-2b")[:2] == (24, 2048) and shape("velocity-2b")[3] == 50_257
    assert shape("efficientlm")[2] == 8192
    compact = load_recipe("compact").model
    assert compact.model_copy(update={"sharing": None}).parameter_count() >= 100_000_000


def test_quickstart_is_a_model_small_enough_for_two_minutes():
    assert 1e6 < load_recipe("quickstart").model.parameter_count() < 2e6


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_a_description_and_a_smoke_variant_of_the_same_kinds(name):
    recipe, smoke = load_recipe(name), load_recipe(f"{name.removesuffix('-smoke')}-smoke")
    assert recipe.description
    assert smoke.model.parameter_count() < 1e6

    def kinds(values):
        if not isinstance(values, dict):
            return None
        return {
            k: v if k == "kind" else kinds(v) for k, v in values.items() if k == "kind" or isinstance(v, dict)
        }

    assert kinds(recipe.model_dump(exclude={"data"})) == kinds(smoke.model_dump(exclude={"data"}))


@pytest.mark.parametrize("name", SMOKE)
def test_smoke_recipes_train_a_few_steps_on_the_standard_library(name, tmp_path):
    from shoestring.train.pretrain import pretrain

    result = pretrain(name, out=str(tmp_path / "run"))
    assert result.steps == 8 and 0 < result.bits_per_byte < 8
    assert (result.checkpoint / "config.json").is_file() and result.plot.stat().st_size > 5000


def test_one_length_given_replaces_the_recipes_own():
    train = load_recipe("quickstart", {"train.steps": "5"}).train
    assert (train.steps, train.tokens, train.time) == (5, None, None)
    assert load_recipe("quickstart", {"train.time": "3m"}).train.time == 180


@pytest.mark.parametrize(("given", "means"), [("true", "full"), ("false", "selective"), ("none", "none")])
def test_what_is_recomputed_may_be_said_with_yes_or_no(given, means):
    assert load_recipe("quickstart", {"train.checkpoint_blocks": given}).train.checkpoint_blocks == means
    with pytest.raises(ConfigError, match="none"):
        load_recipe("quickstart", {"train.checkpoint_blocks": "some"})


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"model.sharing.unique_layers": "7"}, "must be at most layers"),
        ({"model.value_residual": "true", "model.block": "reversible"}, "reversible blocks exist to avoid"),
        ({"model.attention.kind": "mla"}, "latent_rank"),
        ({"model.feed_forward": "{kind: moe, width: 8, experts: 2, active: 3}"}, "must be at most experts"),
        ({"model.block": "reversibel"}, "did you mean reversible"),
        ({"model.linear.kind": "lowrank"}, "did you mean low_rank"),
    ],
)
def test_combinations_of_kinds_that_make_no_sense_are_refused_with_the_reason(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        load_recipe("quickstart", overrides)


def test_a_model_to_start_from_replaces_the_shapes():
    assert load_recipe("quickstart", {"model.init": "smollm2-135m"}).model.init == "smollm2-135m"


def test_unknown_names_and_settings_give_the_nearest():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_recipe("quikstart")
    with pytest.raises(ConfigError, match="did you mean optimizer.learning_rate"):
        load_recipe("elite-112m", {"train.learning_rat": "1"})


@pytest.mark.parametrize(
    "overrides",
    [
        {"train.steps": "5", "train.time": "3m"},
        {"train.batch_tokens": "1000"},
        {"train.microbatch": "3"},
        {"model.attention.kv_heads": "3"},
    ],
)
def test_impossible_combinations_are_refused(overrides):
    with pytest.raises(ConfigError):
        load_recipe("quickstart", overrides)


def test_reading_recipes_does_not_import_torch():
    code = "import sys; from shoestring.train.recipe import *; [load_recipe(n) for n in list_recipes()]"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
