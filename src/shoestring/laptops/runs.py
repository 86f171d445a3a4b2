"""The run of a worker: the job that the order names, continued from the folder that stands here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoestring.core.errors import ConfigError
from shoestring.laptops.order import ASKED, Order
from shoestring.laptops.reporting import Shares
from shoestring.train.watching import watched_by


def run(order: Order, out: Path) -> Any:
    """Its result. Raises what the job raises."""
    if order.verb in ASKED:
        from shoestring.laptops.asking import answer

        return answer(order, out)
    ranges = [list(each) for each in order.split.ranges] if order.world > 1 else None
    settings: dict[str, Any] = {**dict(order.settings), "budget.split": ranges}
    if order.memory is not None:
        settings["budget.memory"] = order.memory
    with watched_by(Shares(order.names)):
        return _job(order.verb)(resume=out, overrides=settings)


def _job(verb: str) -> Any:
    if verb == "finetune":
        from shoestring.finetuning.job import finetune

        return finetune
    if verb == "pretrain":
        from shoestring.pretraining.job import pretrain

        return pretrain
    raise ConfigError(f"{verb} is not done over several machines")
