"""The ways to do a job, each a form: an engine, a number format, how much at once. Forms are predicted, not run.

A job's file beside this one (`forecast.pretrain`, `forecast.finetune`, ...) says what its forms are. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shoestring.models.config import ModelConfig
from shoestring.plan.machine_file import ProcessKind
from shoestring.plan.shapes import Line, Machine, Prediction

Say = Callable[[str], Any]


@dataclass(frozen=True)
class Outcome:
    """steps: how many there are, None where nothing says it. seconds: of all of them and what comes before, None where
    that is not known. bounded: by time, which decides the steps."""

    prediction: Prediction
    steps: int | None = None
    seconds: float | None = None
    bounded: bool = False


def no_lines(prediction: Prediction) -> tuple[Line, ...]:
    return ()


@dataclass(frozen=True)
class Form:
    """at_once: rows, texts or tokens that are computed together, as the job counts; told: the same for a person.

    predict: for a machine. disk: what it writes beside what is there. host: bytes of the process's memory that a run on
    a GPU takes beside those of any. settings: what the command says to have this form. exact: whether the result is
    what other forms give, up to rounding in the format of products. served: texts that a step is for, where forms
    differ in that.
    """

    engine: str
    precision: str
    at_once: int
    told: str
    predict: Callable[[Machine], Outcome]
    note: str = ""
    process: ProcessKind = "decoding"
    disk: Callable[[Prediction], tuple[Line, ...]] = no_lines
    on_gpu: bool = True
    host: Callable[[Prediction], int] = lambda prediction: 0
    settings: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    served: int = 1


class Work(Protocol):
    """A job with nothing left open but its form.

    config: of the model. step: what a step is called. tokens: of one. assumed: what nobody said, in sentences. longest:
    the most tokens that a context may have, None where there is no limit. folder: of the model's files, if there are.
    """

    @property
    def job(self) -> str: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def step(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def assumed(self) -> tuple[str, ...]: ...
    @property
    def longest(self) -> int | None: ...

    def forms(self, limited: bool, settled: str) -> list[Form]:
        """limited: by a budget of memory. settled: the number format that `auto` is on the machine; its forms come
        first."""
        ...

    def at_context(self, tokens: int) -> Work:
        """The same with so long a context, and no more at once than one needs."""
        ...

    def of_model(self, config: ModelConfig) -> Work:
        """The same with another model's shapes."""
        ...

    def context_settings(self) -> dict[str, Any]:
        """What the command says to have this context."""
        ...
