"""`shoestring model show RECIPE`: what a model is made of and what it costs, computed from its shapes. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.core import console
from shoestring.core.units import format_bytes, format_count
from shoestring.models import count
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of, read_config
from shoestring.models.resolve import find_model
from shoestring.nn.config import Recompute
from shoestring.pretraining.config import InitFrom, load_pretrain_recipe
from shoestring.train.recipe_files import recipe_name

Name = Annotated[str, Parameter(help="a built-in recipe, a YAML file, or a run folder")]
BYTES = 4  # of a number in float32, which weights and activations are trained in

app = verb(
    "model",
    "What a model is made of, and what it costs.",
    ("shoestring model show quickstart", "shoestring model show velocity-2b --json"),
)
_show = verb(
    "show",
    "The model of a recipe: parameters by part, bytes of weights, cache and activations, operations per token.",
    ("shoestring model show velocity-2b", "shoestring model show compact --model.sharing.unique_layers 6 --json"),
)
app.command(_show)


@_show.default
def show(recipe: Name, /, *, json: Json = False, overrides: Overrides = None) -> None:
    settings = load_pretrain_recipe(recipe, overrides)
    model = settings.model
    if isinstance(model, InitFrom):
        model = read_config(find_model(model.init, say=console.say))
    figures = model_figures(model, settings.train.sequence_length, settings.train.activation_checkpointing)
    if json:
        console.print_json({"recipe": recipe_name(recipe), **figures})
    else:
        _print(recipe_name(recipe), model, figures)


def model_figures(model: ModelConfig, tokens: int, recompute: Recompute) -> dict[str, Any]:
    """All figures of `model show`; bytes are of float32, operations of a token in a sequence of this many."""
    operations = count.operations(model, tokens, recompute)
    kept = count.activations(model, recompute)
    modes: tuple[Recompute, ...] = ("none", "selective", "full")
    return {
        "format": family_of(model).model_type,
        "parameters": model.parameters(),
        "parameter_count": model.parameter_count(),
        "weight_bytes": {"float32": 4 * model.parameter_count(), "bfloat16": 2 * model.parameter_count()},
        "training_bytes": 16 * model.parameter_count(),
        "cache_bytes_per_token": BYTES * count.cache_numbers(model),
        "activation_checkpointing": recompute,
        "activation_bytes_per_token": BYTES * kept.total,
        "activation_bytes_per_token_by_mode": {m: BYTES * count.activations(model, m).total for m in modes},
        "sequence_length": tokens,
        "forward_operations_per_token": operations.forward,
        "training_operations_per_token": operations.training,
        "repeated_operations_per_token": operations.again,
    }


def _print(name: str, model: ModelConfig, figures: dict[str, Any]) -> None:
    total = figures["parameter_count"]
    rows = [(part, f"{n:,}", f"{n / total:.1%}") for part, n in figures["parameters"].items() if n]
    rows.append(("all", f"{total:,}", ""))
    console.show(f"{name}: {_kinds(model)}\n")
    console.out.print(console.table(("part", "parameters", "share"), rows, right=("parameters", "share")))
    saved = figures["format"]
    if saved == "shoestring":
        saved += " (transformers has no such kinds)"
    by_mode = figures["activation_bytes_per_token_by_mode"].items()
    others = ", ".join(f"{mode} {format_bytes(n)}" for mode, n in by_mode)
    tokens = f"{figures['sequence_length']:,} tokens"
    again = figures["repeated_operations_per_token"]
    repeated = f", {format_count(again)} of them to compute blocks again" if again else ""
    lines = [
        ("saved as", saved),
        ("weights", f"{format_bytes(4 * total)} in float32, {format_bytes(2 * total)} in bfloat16"),
        ("training", f"{format_bytes(16 * total)} with gradients and AdamW's moments, activations on top"),
        ("cache", f"{format_bytes(figures['cache_bytes_per_token'])} per token in float32"),
        (
            "activations",
            f"{format_bytes(figures['activation_bytes_per_token'])} per token in float32;"
            f" train.activation_checkpointing: {others}",
        ),
        ("forward", f"{format_count(figures['forward_operations_per_token'])} operations per token of {tokens}"),
        ("a training step", f"{format_count(figures['training_operations_per_token'])} per token{repeated}"),
    ]
    console.out.print()
    for label, text in lines:
        console.show(f"{label:<16}{text}")


def _kinds(model: ModelConfig) -> str:
    layers = f"{model.layers} {model.block} layers"
    if model.sharing is not None:
        layers += f" of {model.unique_layers} blocks ({model.sharing.order})"
    parts = [
        f"{layers} of width {model.width}",
        model.attention.kind,
        model.feed_forward.kind,
        f"{model.position.kind} positions",
        *([f"{model.linear.kind} linears"] if model.linear.kind != "dense" else []),
        f"context {model.context:,}",
        f"vocabulary {model.vocabulary:,}",
    ]
    return ", ".join(parts)
