"""What is done over the machines: one run, its folder on the first of them, its plan, and the files that others need.

The first machine's folder is the run. Each other one gets, before every start, its layers of the model, the examples,
the run's recipe with their places there, and the newest checkpoint. Torch-free.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoestring.core.config import dump_yaml
from shoestring.core.errors import BudgetError
from shoestring.core.files import atomic_write
from shoestring.core.foreign import read_json
from shoestring.core.units import format_bytes, format_count
from shoestring.finetuning.config import load_finetune_recipe
from shoestring.laptops.crew import Crew, Present, Say
from shoestring.laptops.order import Order
from shoestring.laptops.pieces import RemoteFile, needed
from shoestring.laptops.prediction import Figures, work_of
from shoestring.laptops.shape import from_json
from shoestring.plan.shapes import EngineName
from shoestring.plan.split import Link, Planned, fewer, split
from shoestring.pretraining.config import load_pretrain_recipe

RECIPE, STATE = "recipe.yaml", Path("trainer", "state.json")
PLAN = "machines.json"  # in the run's folder: who holds what, and what was predicted
_WHOLE = 64 * 2**20  # bytes of a checkpoint's file that goes as it is
_LOAD = {"finetune": load_finetune_recipe, "pretrain": load_pretrain_recipe}


class Project:
    """survey: what `survey.surveyed` found. address: of this machine, which its worker binds."""

    def __init__(self, survey: dict[str, Any], address: str):
        self.address = address
        self.verb, self.out = survey["verb"], Path(survey["out"])
        self.base = None if survey["base"] is None else Path(survey["base"])
        self.files = {key: (Path(here), there) for key, (here, there) in survey["files"].items()}
        self.new, self.tied = bool(survey["new"]), bool(survey["tied"])
        self.shape = from_json(survey["shape"])
        self.engines: list[EngineName] = survey["engines"]
        self.weights = survey["weights"]
        self.digests = tuple(sorted(survey["digests"].items()))
        self.settings = tuple((name, str(value)) for name, value in survey["settings"].items())
        self.resume = f"continue with: shoestring {self.verb} --resume {self.out} --over MACHINES"
        self._there = f"run-{secrets.token_hex(6)}"  # the run's folder on the others
        self._rewritten = Path(tempfile.mkdtemp(prefix="shoestring-laptops-"))
        self._started = False

    def close(self) -> None:
        """A new run that could do no step leaves nothing behind."""
        shutil.rmtree(self._rewritten, ignore_errors=True)
        if self.new and not self._started and self.step() == 0:
            shutil.rmtree(self.out, ignore_errors=True)

    def step(self) -> int:
        newest = self._newest()
        return 0 if newest is None else int(read_json(newest / STATE)["step"])

    def arguments(self, order: Order) -> dict[str, Any]:
        return {"out": str(self.out.absolute()), "here": self.address}

    def orders(self, number: int, present: Sequence[Present], crew: Crew, say: Say) -> list[Order]:
        recipe = _LOAD[self.verb](self.out / RECIPE)
        planned, engine = self.plan(recipe, present, crew, say)
        recipe = self._settle(recipe, planned.rows, engine)
        with atomic_write(self.out / PLAN) as file:
            json.dump({"start": number, "engine": engine, **asdict(planned)}, file, indent=1)
        self._started = True
        orders = []
        for rank, (one, part) in enumerate(zip(present, planned.parts, strict=True)):
            files: list[RemoteFile] = []
            if one.member is not None:
                one.member.shared.begin(number)
                files = self._files(one, rank, planned)
            orders.append(
                Order(
                    number, self.verb, rank, planned.split, self.shape.config.layers, planned.names, one.memory,
                    part.peak, planned.seconds, self._there, tuple(files), self.digests,
                    self.settings,
                )
            )  # fmt: skip
        return orders

    def plan(self, recipe: Any, present: Sequence[Present], crew: Crew, say: Say) -> tuple[Planned, EngineName]:
        """The fastest that fits, the engine that takes no room on the disk first. Raises BudgetError."""
        laptops = [one.laptop(1.0) for one in present]
        between, refusal = crew.links(present), None
        links = [between(i, i + 1) for i in range(len(present) - 1)]
        work, rows = work_of(self.shape), recipe.train.microbatch
        machines, memory = [one.machine for one in present], [one.memory for one in present]
        for engine in self.engines:
            figures = Figures(self.shape, machines, memory, engine, self.weights)
            peak, seconds = figures.over(range(len(present)))
            try:
                found = split(work, laptops, links, peak, rows, seconds=seconds)
            except BudgetError as error:
                refusal = error
                continue
            for line in told(found, engine, links):
                say(line)
            better = fewer(work, laptops, between, peak, rows, figures=figures.over)
            if better is not None:
                names = ", ".join(better.names)
                say(f"faster    {names} without the others: about {format_count(better.tokens_per_second)} tokens/s")
            return found, engine
        assert refusal is not None
        raise refusal

    def _settle(self, recipe: Any, rows: int, engine: EngineName) -> Any:
        """What the plan chose stands in the run's recipe, and stays: later starts split it otherwise, not the step."""
        train = recipe.train.model_copy(update={"microbatch": rows})
        budget = recipe.budget
        if budget.engine == "auto":
            budget = budget.model_copy(update={"engine": engine})
        settled = recipe.model_copy(update={"train": train, "budget": budget})
        if settled != recipe:
            with atomic_write(self.out / RECIPE) as file:
                file.write(dump_yaml(settled))
        return settled

    def _files(self, one: Present, rank: int, planned: Planned) -> list[RemoteFile]:
        """What a machine needs: its layers, the data, the recipe with their places there, the newest checkpoint."""
        assert one.member is not None
        shared, layers, tied = one.member.shared, self.shape.config.layers, self.tied
        start, end = planned.split.ranges[rank]

        def wanted(tensor: str) -> bool:
            return needed(tensor, start, end, layers, tied)

        files: list[RemoteFile] = []
        for here, there in self.files.values():
            if here == self.base:
                files += shared.offer_folder(here, there, wanted)
            elif here.is_dir():
                files += shared.offer_tree(here, there)
            else:
                files.append(shared.offer(here, there))
        if (newest := self._newest()) is not None:
            files += shared.offer_folder(newest, f"{self._there}/{newest.name}", wanted, _WHOLE)
        places = {key: there for key, (_, there) in self.files.items()}
        text = dump_yaml(_LOAD[self.verb](self.out / RECIPE, places))
        rewritten = self._rewritten / RECIPE
        if not rewritten.is_file() or rewritten.read_text(encoding="utf-8") != text:
            with atomic_write(rewritten) as file:
                file.write(text)
        files.append(shared.offer(rewritten, f"{self._there}/{RECIPE}"))
        return files

    def _newest(self) -> Path | None:
        """The newest whole checkpoint, as `train.checkpoint.checkpoints` finds it."""
        found = [path for path in self.out.glob("step-*") if (path / STATE).is_file()]
        return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def told(planned: Planned, engine: EngineName, links: Sequence[Link]) -> list[str]:
    """The plan for a person: a line for each machine, and one for all."""
    wide = max(len(part.name) for part in planned.parts)
    lines = [f"plan      {engine}, {planned.microbatches} × {planned.rows} rows pass from machine to machine"]
    for part in planned.parts:
        lines.append(
            f"          {part.name:<{wide}}  layers {part.start} to {part.end - 1},"
            f" {format_bytes(part.peak)} predicted, works {part.working:.0%} of the time, waits {part.waiting:.0%},"
            f" network {part.network:.0%}"
        )
    lines.append(
        f"speed     about {format_count(planned.tokens_per_second)} tokens/s, {planned.seconds:.1f} s a step;"
        f" filling and emptying the row takes {planned.bubble:.0%}, the network {planned.network:.0%}"
    )
    return lines
