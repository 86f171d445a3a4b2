"""Sizes that are chosen or given: what fits, what is spared first, and what cannot be."""

from __future__ import annotations

import pytest

from shoestring.compression.prune.config import PruneConfig, prune_config
from shoestring.compression.prune.shape import Shape, target_shape, told
from shoestring.core.errors import ConfigError
from shoestring.models.config import ModelConfig

SMOL = ModelConfig.model_validate({
    "vocabulary": 49_152, "width": 576, "layers": 30, "context": 2048,
    "attention": {"heads": 9, "kv_heads": 3, "head_width": 64}, "feed_forward": {"width": 1536},
})  # fmt: skip


def settings(**given) -> PruneConfig:
    return prune_config({"calibrate": "text", **given})


@pytest.mark.parametrize("wanted", ["0.95x", "0.7x", "0.5x", "0.3x", "95M", 120_000_000])
def test_a_number_of_parameters_is_reached_from_below_and_nearly(wanted) -> None:
    shape = target_shape(settings(parameters=wanted), SMOL)
    count, whole = shape.applied(SMOL).parameter_count(), SMOL.parameter_count()
    asked = whole * float(wanted[:-1]) if str(wanted).endswith("x") else {"95M": 95e6}.get(wanted, wanted)
    assert asked * 0.97 < count <= asked
    assert shape.feed_forward % 32 == 0 and shape.width % 32 == 0


def test_feed_forward_is_spared_first_then_the_others() -> None:
    whole = Shape.of(SMOL)
    assert whole == Shape(30, 1536, 3, 576)
    gentle = target_shape(settings(parameters="0.8x"), SMOL)
    assert gentle == Shape(30, gentle.feed_forward, 3, 576) and gentle.feed_forward < 1536
    more = target_shape(settings(parameters="0.6x"), SMOL)
    assert 768 <= more.feed_forward < 832 and 448 <= more.width < 576 and (more.layers, more.groups) == (30, 3)
    most = target_shape(settings(parameters="0.4x"), SMOL)
    assert most.width == 448 and most.groups == 2 and most.layers < 30


def test_given_sizes_are_taken_as_they_are() -> None:
    shape = target_shape(settings(layers=24, feed_forward=1024, heads=6, width=448), SMOL)
    assert shape == Shape(24, 1024, 2, 448)
    config = shape.applied(SMOL)
    assert (config.attention.heads, config.attention.kv_heads, config.attention.head_width) == (6, 2, 64)
    assert config.parameter_count() == 49_152 * 448 + 24 * (448 * (2 * 384 + 2 * 128 + 3 * 1024 + 2)) + 448
    what = "layers 30 -> 24, feed-forward 1,536 -> 1,024, heads 9 -> 6, width 576 -> 448"
    assert told(Shape.of(SMOL), shape, 3) == what


def test_rounds_come_nearer_in_equal_steps_and_end_at_the_target() -> None:
    begin, end = Shape(30, 1536, 3, 576), Shape(24, 1024, 2, 448)
    steps = [begin.towards(end, number / 4) for number in range(5)]
    assert steps[0] == begin and steps[-1] == end
    assert [step.layers for step in steps] == [30, 29, 27, 26, 24]
    assert [step.feed_forward for step in steps] == [1536, 1408, 1280, 1152, 1024]
    assert [step.groups for step in steps] == [3, 3, 3, 3, 2]
    assert all(step.width % 32 == 0 for step in steps)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parameters": "200M"}, "has 134,515,008 parameters, 200,000,000 are not fewer"),
        ({"parameters": "0.1x"}, "are too few for what is chosen here: .* are the least"),
        ({"layers": 31}, "layers 31: the model has 30, and pruning adds none"),
        ({"heads": 12}, "heads 12: the model has 9"),
        ({"heads": 4}, "(?s)heads 4: 3 query heads share one.*possible: 3, 6"),
        ({"width": 576}, "these are the sizes that the model has"),
    ],
)
def test_targets_that_are_impossible_are_told(given, said) -> None:
    with pytest.raises(ConfigError, match=said):
        target_shape(settings(**given), SMOL)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing is to be pruned: give sparsity or pattern"),
        ({"sparsity": 1.0}, "sparsity: expected"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "sparsity and pattern exclude each other"),
        ({"pattern": "3:4"}, "pattern: expected one of"),
        ({"sparsity": 0.5, "layers": 3}, "prune twice"),
        ({"parameters": "0.7x", "width": 3}, "parameters chooses the sizes, and width is one"),
        ({"parameters": "1.5x"}, "1.5x is no smaller model"),
        ({"parameters": "few"}, "'few' is not a number of things"),
        ({"layers": 0}, "layers: expected"),
        ({"layers": 3, "method": "wanda"}, "method is of sparsity and pattern"),
        ({"sparsity": 0.5, "fit": False}, "fit is of parts"),
        ({"pattern": "2:4", "rounds": 3}, "pattern 2:4 has 2 rounds at most"),
        ({"layers": 3, "calibrate": None}, "needs text to calibrate with"),
        ({"sparsity": 0.5, "calibrate": None}, "wanda needs text .* or take method magnitude"),
        ({"sparsity": 0.5, "method": "magnitude", "calibrate": None, "recover": 5}, "recover trains on"),
        ({"layers": 3, "learning_rate": 0.1}, "learning_rate is of recover"),
        ({"layers": 3, "recover_by": "model"}, "recover_by is of recover"),
        ({"layers": 3, "recover": 2, "recover_by": "words"}, "recover_by"),
        ({"layers": 3, "recover": "0"}, "recover of 0 steps is none"),
        ({"layers": 3, "recover": "soon"}, "'soon' is not a duration"),
    ],
)
def test_settings_that_do_not_go_together_are_told(given, said) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(**given)


def test_recover_is_of_steps_or_of_time() -> None:
    assert settings(layers=3, recover="200").recovering == (200, None) == settings(layers=3, recover=200).recovering
    assert settings(layers=3, recover="10m").recovering == (None, 600.0)
    assert settings(layers=3).recovering == (None, None)
