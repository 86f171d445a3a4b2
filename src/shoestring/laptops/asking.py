"""`generate_over(machines, MODEL, prompts)`, and what else is asked of a model whose layers lie on several machines.

Every machine runs the same calls on the same prompts and gets the same texts (`offload.pipeline.language`); the first
one shows them. Nothing is kept: where a machine leaves, the others begin the texts again. `laptops.scoring` has what is
measured so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.laptops.config import MachinesConfig
from shoestring.laptops.crew import Crew, Present, Say
from shoestring.laptops.order import Order
from shoestring.laptops.pieces import RemoteFile, needed
from shoestring.laptops.prediction import EFFICIENCY, machine_of
from shoestring.laptops.project import told
from shoestring.laptops.share import Shared
from shoestring.laptops.survey import MODEL
from shoestring.models.config import ModelConfig
from shoestring.models.count import operations
from shoestring.plan.decoding import Use, predict_use
from shoestring.plan.ranges import Split
from shoestring.plan.split import Peak, Work, split
from shoestring.plan.tape import FLOAT

ADAPTER, DATA = "adapter", "data"  # on the others, beside the folder of the model
_PROMPT, _NEW = 512, 256  # tokens for which room is planned
_SUITE = 16  # questions that are answered together
_SCORED = 2048  # tokens that are scored at once


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

    model: also an adapter's folder, which all of them get. machines, token, listen, wait: as `finetune_over` takes
    them. sampling: as `LanguageModel.complete` takes it. -> {"text": for a person, "json": what `generate --json`
    prints}. Raises what `finetune_over` raises.
    """
    request = {"prompts": list(prompts), "special_tokens": special_tokens, "sampling": sampling}
    return ask_over("generate", machines, model, request, token, listen, wait)


def ask_over(
    verb: str, machines: str | Path | MachinesConfig, model: str | Path, request: dict[str, Any], token: str | None,
    listen: str | None, wait: str | None,
) -> dict[str, Any]:  # fmt: skip
    """request: of plain data; what is in its "data" is a file, which the others get."""
    from shoestring.laptops.over import conduct

    survey = {"verb": verb, "recipe": str(model), "request": request}
    return conduct(machines, survey, Asking, token, listen, wait)


class Asking:
    """A `coordinate.Work`. survey: what `survey.surveyed` found. address: of this machine, which its worker binds."""

    def __init__(self, survey: dict[str, Any], address: str):
        self.address, self.verb, self.out = address, survey["verb"], Path(survey["base"])
        self.base, self.tied = Path(survey["base"]), bool(survey["tied"])
        self.adapter = None if survey["adapter"] is None else Path(survey["adapter"])
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
        cost, use = operations(config, 1), self._use()
        work = Work(layers, use.rows, 1, cost.matrices / layers, FLOAT * config.width, last=cost.head)
        laptops = [one.laptop(EFFICIENCY * one.machine["flops"]["float32"]) for one in present]
        between = crew.links(present)
        links = [between(i, i + 1) for i in range(len(present) - 1)]
        planned = split(work, laptops, links, self._peak(use, [one.machine for one in present]), use.rows)
        for line in told(planned, "resident", links):
            say(line)
        orders = []
        for rank, (one, part) in enumerate(zip(present, planned.parts, strict=True)):
            files: list[RemoteFile] = []
            request = {**self.request, "adapter": None if self.adapter is None else str(self.adapter.absolute())}
            if one.member is not None:
                one.member.shared.begin(number)
                wanted = functools.partial(needed, start=part.start, end=part.end, layers=layers, tied=self.tied)
                files, request = self._files(one.member.shared, wanted)
            orders.append(
                Order(
                    number, self.verb, rank, planned.split, layers, planned.names, one.memory, part.peak,
                    planned.seconds, MODEL, tuple(files), self.digests, (), request,
                )
            )  # fmt: skip
        return orders

    def _files(self, shared: Shared, wanted: Callable[[str], bool]) -> tuple[list[RemoteFile], dict[str, Any]]:
        """What another machine needs, and the request with the places there."""
        files, request = shared.offer_folder(self.base, MODEL, wanted), {**self.request, "adapter": None}
        if self.adapter is not None:
            files += shared.offer_folder(self.adapter, ADAPTER)
            request["adapter"] = ADAPTER
        if "data" in request:
            data = Path(request["data"])
            request["data"] = f"{DATA}/text{''.join(data.suffixes[-2:])}"
            files.append(shared.offer(data, request["data"]))
        return files, request

    def _use(self) -> Use:
        """What is planned for."""
        if self.verb == "perplexity":
            context = self.request["context"] or min(_SCORED, self.config.context)
            return Use(max(_SCORED // context, 1), context, scored=True, documents=True)
        if self.verb == "evaluate":
            return Use(_SUITE, _PROMPT, _NEW)
        return Use(len(self.request["prompts"]), _PROMPT, self.request["sampling"].get("max_tokens") or _NEW)

    def _peak(self, use: Use, machines: Sequence[dict[str, Any]]) -> Peak:
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


def answer(order: Order, folder: Path) -> Any:
    """By each machine's worker. folder: of its part of the model."""
    from shoestring.laptops.scoring import evaluated, scored
    from shoestring.offload.pipeline.language import load_over
    from shoestring.train import parallel

    ask = {"generate": _texts, "perplexity": scored, "evaluate": evaluated}[order.verb]
    adapter = order.request["adapter"]
    with parallel.stages():
        ranges = order.split.ranges if order.world > 1 else ((0, order.layers),)
        language = load_over(folder, Split(ranges), adapter=None if adapter is None else folder.parent / adapter)
        return ask(language, order.request, folder.parent)


def _texts(language: Any, request: dict[str, Any], files: Path) -> Texts:
    from shoestring.generate.texts import as_result

    prompts, sampling = [str(prompt) for prompt in request["prompts"]], dict(request["sampling"])
    for name in ("stop", "stop_tokens", "bad_words_ids"):
        if sampling.get(name) is not None:  # JSON has no tuples
            sampling[name] = tuple(tuple(one) if isinstance(one, list) else one for one in sampling[name])
    if sampling.get("logit_bias") is not None:
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
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
    from shoestring.models.peft_folder import find_base, is_adapter
    from shoestring.models.resolve import find_model
    from shoestring.models.weight_files import WeightFiles, weight_paths
    from shoestring.offload.pipeline.model import unsplit

    folder = find_model(asked["recipe"], say=console.say)
    adapter, request = None, asked["request"]
    if is_adapter(folder):
        adapter, folder = folder, find_base(folder, console.say)
    if "data" in request and not Path(request["data"]).is_file():
        raise ConfigError(
            f"{request['data']} is no file: over several machines what is scored is one, which each of them gets"
        )
    with WeightFiles(folder) as files:
        config = files.config
        source = str(files.places["embedding.weight"].info.dtype).removeprefix("torch.")
    if refused := unsplit(config):
        raise ConfigError(f"a model with {refused[0]} cannot be split over machines")
    return {
        "verb": asked["verb"], "base": str(folder), "adapter": None if adapter is None else str(adapter),
        "tied": config.tied_head, "config": config.model_dump(mode="json"),
        "source": source, "digests": {path.name: sha256_file(path) for path in weight_paths(folder)},
        "request": request if "data" not in request else {**request, "data": str(Path(request["data"]).absolute())},
    }  # fmt: skip

