"""`generate_over(machines, MODEL, prompts)`: texts from a model whose layers lie on several machines.

Every machine runs the same calls on the same prompts and gets the same texts (`offload.pipeline.language`); the first
one shows them. Nothing is kept: where a machine leaves, the others begin the texts again.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.laptops.config import MachinesConfig
from shoestring.laptops.crew import Crew, Present, Say
from shoestring.laptops.order import Order
from shoestring.laptops.pieces import needed
from shoestring.laptops.prediction import EFFICIENCY, machine_of
from shoestring.laptops.project import told
from shoestring.laptops.survey import MODEL
from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.ranges import Split
from shoestring.plan.split import Peak, Work, split
from shoestring.plan.tape import FLOAT

_PROMPT = 512  # tokens for which room is planned, beside those that are written


def generate_over(
    machines: str | Path | MachinesConfig,
    model: str | Path,
    prompts: Sequence[str],
    token: str | None = None,
    listen: str | None = None,
    wait: str | None = None,
    special_tokens: str = "read",
    **sampling: Any,
) -> dict[str, Any]:
    """Continue each prompt with `model`, of which each machine holds some layers. The others come by `join`.

    machines, token, listen, wait: as `finetune_over` takes them. sampling: as `LanguageModel.complete` takes it. ->
    {"text": for a person, "json": what `generate --json` prints}. Raises ConfigError for an adapter, and what
    `finetune_over` raises.
    """
    from shoestring.laptops.over import conduct

    request = {"prompts": list(prompts), "special_tokens": special_tokens, "sampling": sampling}
    survey = {"verb": "generate", "recipe": str(model), "request": request}
    return conduct(machines, survey, Asking, token, listen, wait)


class Asking:
    """A `coordinate.Work`. survey: what `survey.surveyed` found. address: of this machine, which its worker binds."""

    def __init__(self, survey: dict[str, Any], address: str):
        self.address, self.out = address, Path(survey["base"])
        self.base, self.tied = Path(survey["base"]), bool(survey["tied"])
        self.config = ModelConfig.model_validate(survey["config"])
        self.source, self.request = survey["source"], survey["request"]
        self.digests = tuple(sorted(survey["digests"].items()))
        self.resume = "give the command again"

    def close(self) -> None:
        """Nothing was made."""

    def step(self) -> int:
        return 0

    def arguments(self, order: Order) -> dict[str, Any]:
        return {"out": str(self.base.absolute()), "here": self.address}

    def orders(self, number: int, present: Sequence[Present], crew: Crew, say: Say) -> list[Order]:
        config, layers = self.config, self.config.layers
        cost = operations(config, 1)
        rows = len(self.request["prompts"])
        work = Work(layers, rows, 1, cost.matrices / layers, FLOAT * config.width, last=cost.head)
        laptops = [one.laptop(EFFICIENCY * one.machine["flops"]["float32"]) for one in present]
        between = crew.links(present)
        links = [between(i, i + 1) for i in range(len(present) - 1)]
        planned = split(work, laptops, links, self._peak([one.machine for one in present]), rows)
        for line in told(planned, "resident", links):
            say(line)
        orders = []
        for rank, (one, part) in enumerate(zip(present, planned.parts, strict=True)):
            files = []
            if one.member is not None:
                one.member.shared.begin(number)
                wanted = functools.partial(
                    needed, start=part.start, end=part.end, layers=layers, tied=self.tied
                )
                files = one.member.shared.offer_folder(self.base, MODEL, wanted)
            orders.append(
                Order(
                    number, "generate", rank, planned.split, layers, planned.names, one.memory, part.peak,
                    planned.seconds, MODEL, tuple(files), self.digests, (), self.request,
                )
            )  # fmt: skip
        return orders

    def _peak(self, machines: Sequence[dict[str, Any]]) -> Peak:
        new = self.request["sampling"].get("max_tokens") or 256
        use = Use(len(self.request["prompts"]), _PROMPT, new)

        def peak(index: int, count: int, layers: int, rows: int, microbatches: int) -> int:
            part = self.config.model_copy(update={"layers": layers})
            return predict_use(part, use, machine_of(machines[index]), self.source).total

        return peak


@dataclass(frozen=True)
class Texts:
    """What the first machine shows."""

    texts: tuple[str, ...]
    values: dict[str, Any]

    def __str__(self) -> str:
        return "\n\n".join(self.texts)

    def to_json(self) -> dict[str, Any]:
        return self.values


def texts(order: Order, folder: Path) -> Texts:
    """By each machine's worker."""
    from shoestring.generate.texts import as_result
    from shoestring.offload.pipeline.language import load_over
    from shoestring.train import parallel

    request = order.request
    prompts, sampling = [str(prompt) for prompt in request["prompts"]], dict(request["sampling"])
    for name in ("stop", "stop_tokens", "bad_words_ids"):
        if sampling.get(name) is not None:  # JSON has no tuples
            sampling[name] = tuple(tuple(one) if isinstance(one, list) else one for one in sampling[name])
    if sampling.get("logit_bias") is not None:
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
    with parallel.stages():
        language = load_over(folder, Split(order.split.ranges) if order.world > 1 else Split(((0, order.layers),)))
        completions = language.complete(prompts, request["special_tokens"], **sampling)
    each = len(completions) // len(prompts)
    repeated = [prompt for prompt in prompts for _ in range(each)]
    results = [
        {"prompt": prompt} | as_result(language.tokenizer, completion)
        for prompt, completion in zip(repeated, completions, strict=True)
    ]
    shown = tuple(prompt + completion.text for prompt, completion in zip(repeated, completions, strict=True))
    return Texts(shown, results[0] if len(results) == 1 else {"results": results})


def surveyed(asked: dict[str, Any]) -> dict[str, Any]:
    """By the process that looks at the model (`survey`)."""
    from shoestring.core import console
    from shoestring.core.files import sha256_file
    from shoestring.models.peft_folder import is_adapter
    from shoestring.models.resolve import find_model
    from shoestring.models.weight_files import WeightFiles, weight_paths
    from shoestring.offload.pipeline.model import unsplit

    folder = find_model(asked["recipe"], say=console.say)
    if is_adapter(folder):
        raise ConfigError(
            "an adapter is not split over machines, and a whole model is", str(folder),
            f"merge it first: shoestring merge {asked['recipe']}",
        )  # fmt: skip
    with WeightFiles(folder) as files:
        config = files.config
        source = str(files.places["embedding.weight"].info.dtype).removeprefix("torch.")
    if refused := unsplit(config):
        raise ConfigError(f"a model with {refused[0]} cannot be split over machines")
    return {
        "verb": "generate", "base": str(folder), "tied": config.tied_head, "config": config.model_dump(mode="json"),
        "source": source, "digests": {path.name: sha256_file(path) for path in weight_paths(folder)},
        "request": asked["request"],
    }  # fmt: skip

