"""`shoestring model show RECIPE_OR_MODEL`: what a model is made of and costs, computed from its shapes. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from shoestring.cli.verb import Json, Overrides, verb
from shoestring.compression.report import read_report, summary
from shoestring.core import console
from shoestring.core.config import Config, load_config
from shoestring.core.units import format_bytes, format_count
from shoestring.core.yaml_document import YamlDocument
from shoestring.forecast.subject import folder_of, is_model
from shoestring.models import count
from shoestring.models.config import ModelConfig
from shoestring.models.families.registry import family_of, read_config
from shoestring.nn.config import Recompute
from shoestring.pretraining.config import InitFrom, load_pretrain_recipe
from shoestring.train.recipe_files import recipe_name

Name = Annotated[
    str, Parameter(help="a recipe, by name or .yaml file; or a model: a folder, a run, a name that get knows")
]
_TOKENS = 2048  # of a sequence, where nothing says how long
BYTES = 4  # of a number in float32, which weights and activations are trained in

app = verb(
    "model",
    "What a model is made of, and what it costs.",
    ("shoestring model show quickstart", "shoestring model show velocity-2b --json"),
)
_show = verb(
    "show",
    "A model, of a recipe or one that is there: parameters, weights, cache, activations, operations per token.",
    ("shoestring model show velocity-2b", "shoestring model show compact --model.sharing.unique_layers 6 --json"),
)
app.command(_show)


@_show.default
def show(name: Name, /, *, json: Json = False, overrides: Overrides = None) -> None:
    report = None
    if is_model(name):
        kind, called = "model", name
        folder = folder_of(name, console.say)
        model, report = read_config(folder), read_report(folder)
        looks = load_config(_Looks, YamlDocument({"train": {}}, name=name), overrides).train
        tokens, recompute = looks.sequence_length or min(model.context, _TOKENS), looks.activation_checkpointing
    else:
        kind, called = "recipe", recipe_name(name)
        settings = load_pretrain_recipe(name, overrides)
        chosen = settings.model
        model = read_config(folder_of(chosen.init, console.say)) if isinstance(chosen, InitFrom) else chosen
        tokens, recompute = settings.train.sequence_length, settings.train.activation_checkpointing
    figures = model_figures(model, tokens, recompute)
    if json:
        console.print_json({kind: called, **figures, **({} if report is None else {"compression": report})})
    else:
        _print(called, model, figures, None if report is None else summary(report))


class _LooksTrain(Config):
    sequence_length: int | None = Field(None, gt=0)
    activation_checkpointing: Recompute = "selective"


class _Looks(Config):
    """What a model that is there leaves open."""

    train: _LooksTrain = _LooksTrain()


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


def _print(name: str, model: ModelConfig, figures: dict[str, Any], compressed: str | None) -> None:
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
        *([] if compressed is None else [("compressed", compressed)]),
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
