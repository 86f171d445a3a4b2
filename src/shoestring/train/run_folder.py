"""Starting a run's folder, and continuing one: what a resume may change and what it may not.

A run that continued with other settings would be neither run, so anything that its numbers depend on must
be equal; but it may be given another length, beyond where it is. Before its first checkpoint nothing depends on
anything yet.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoestring.core.config import Config, dump_yaml
from shoestring.core.errors import ConfigError, RunError
from shoestring.core.files import Held, atomic_write, check_place, clear_errors, hold
from shoestring.train import metrics_file, parallel
from shoestring.train.brought import bring_folder, bring_text
from shoestring.train.checkpoint import STATE, checkpoints, clean, read_state
from shoestring.train.metrics_file import truncate_metrics
from shoestring.train.recipe import RunRecipe
from shoestring.train.state import TrainerState

AUTO = "auto"  # for a folder to resume: what is in `out`, if there is something
RECIPE, METRICS, LOCK = "recipe.yaml", metrics_file.NAME, ".lock"
_MAY_CHANGE = (
    "description", "base", "out", "train.keep", "train.rollbacks", "train.most_epochs", "budget.memory", "budget.split",
)  # fmt: skip
_MAY_CHANGE_SECTIONS = ("log.", "parallel.")
# (section, setting, what leaves it to the run)
_SETTLED = (
    ("precision", "compute", "auto"), ("budget", "engine", "auto"), ("budget", "slots", None),
    ("budget", "inputs", "auto"), ("train", "microbatch", None),
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where a run begins. name: of its folder where the recipe has none. origin: of the recipe, for the header.

    out: the folder of a run that goes on, None of a new one; checkpoint: to go on from, None where there is none yet.
    another_length: whether the recipe gives a run that goes on another length than it had.
    """

    recipe: Any  # a RunRecipe; each job knows its own
    name: str
    origin: str
    out: Path | None = None
    checkpoint: Path | None = None
    state: TrainerState = field(default_factory=TrainerState)
    another_length: bool = False
    owned: Held | None = None  # what keeps other processes out of `out`; the first process has it, for all


def resume(
    text: str | Path, load: Callable[..., Any], overrides: dict[str, Any] | None = None, given: Any = None
) -> Start:
    """The run in a folder, with what a killed process left half written removed.

    load: reads a recipe of its kind, with overrides. given: a recipe that was named as well. Raises RunError for
    settings that must not differ.
    """
    with parallel.stages(_is_split(text, load, overrides)):
        out = _find_everywhere(text)
        owned = own(out)
        try:
            recipe, another_length = _resumed_recipe(out, given, overrides, load)
            newest = parallel.by_first(lambda: _make_ready(out))
            checkpoint = None if newest is None else out / newest
            if checkpoint is not None:
                bring_folder(checkpoint, STATE)
            _check_shared(out, checkpoint)
            state = TrainerState() if checkpoint is None else read_state(checkpoint)
        except BaseException:
            disown(owned)
            raise
    return Start(recipe, out.name, f"of the run in {out}", out, checkpoint, state, another_length, owned)


def _is_split(text: str | Path, load: Callable[..., Any], overrides: dict[str, Any] | None) -> bool:
    """Whether the processes are to be stages of one model: then they may have disks of their own."""
    if not parallel.is_parallel():
        return False
    return parallel.by_first(lambda: load(find_run(text) / RECIPE, overrides).budget.split is not None)


def _find_everywhere(text: str | Path) -> Path:
    """`find_run`, for stages with disks of their own too: they get the recipe, but for one that was told another folder
    than the first, in which a run stands: it has the recipe with its own places (`laptops`)."""
    if not parallel.are_stages():
        return find_run(text)
    out = Path(parallel.by_first(lambda: str(find_run(text))))
    own_place = str(out) != str(text) and os.path.isfile(Path(text) / RECIPE)
    bring_text(out / RECIPE, wanted=not own_place)
    return Path(text) if own_place else out


def begun(resume: str | Path | None, out: str | Path | None) -> Path | None:
    """The run to go on with: `resume`; the one in `out`, if there is one, where that is "auto", and where this process
    takes the place of one that failed, started anew by torchrun or the command. As the first process sees it.

    Raises ConfigError for "auto" without `out`.
    """
    auto = str(resume) == AUTO
    if resume is not None and not auto:
        return Path(resume)
    if auto and out is None:
        raise ConfigError("resume auto needs the folder of the run", hint="give --out OUT")
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if out is None or not (auto or again):
        return None
    return Path(out) if parallel.by_first(lambda: os.path.isfile(Path(out) / RECIPE)) else None


def _make_ready(out: Path) -> str | None:
    """-> the name of the newest checkpoint."""
    clean(out)
    whole = checkpoints(out)
    truncate_metrics(out / METRICS, read_state(whole[-1]).step if whole else 0)
    return whole[-1].name if whole else None


def _check_shared(out: Path, checkpoint: Path | None) -> None:
    """Raises RunError where a process does not see the checkpoint that all are to go on from."""
    missing = checkpoint is not None and not (checkpoint / STATE).is_file()
    if parallel.sum_numbers(missing)[0]:
        name = "" if checkpoint is None else checkpoint.name
        hint = "a run that goes on needs a folder that all machines share, at one path (docs/cluster.md)"
        raise RunError(f"not every process sees {name} here", str(out), hint)


def own(out: Path) -> Held | None:
    """Keep other processes out of a run's folder: what the first process holds for all, None in the others.

    Raises RunError while another one is at work there. What a process that died has held is free.
    """
    held: list[Held] = []

    def take() -> None:
        found = hold(out / LOCK)
        if found is None:
            hint = "wait for its end, or stop it with Ctrl-C: it saves itself"
            raise RunError("another process is training this run", str(out), hint)
        held.append(found)

    parallel.by_first(take)
    return held[0] if held else None


def disown(owned: Held | None) -> None:
    if owned is not None:
        owned.release()


def claim(recipe: RunRecipe, name: str) -> tuple[Any, Path, Held | None]:
    """A new run's folder, made by the first process, and the recipe that stands in it: `out`, or the first free
    runs/NAME-N; and what keeps others out of it.

    Raises RunError if taken.
    """

    def make() -> str:
        folder = Path(recipe.out) if recipe.out is not None else next_free(Path("runs"), name)
        check_free(folder)
        with clear_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    folder = Path(parallel.by_first(make))
    owned = own(folder)
    recipe = recipe.model_copy(update={"out": str(folder)})

    def begin() -> None:
        check_free(folder)  # another process may have been as quick
        save_recipe(recipe, folder)

    try:
        parallel.by_first(begin)
    except BaseException:
        disown(owned)
        raise
    return recipe, folder, owned


def check_free(folder: Path) -> None:
    """Raises RunError where a new run cannot stand."""
    check_place(folder)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise RunError("this is a file, not a folder", str(folder), "choose another --out")
    if os.path.exists(folder / RECIPE):
        raise RunError(
            "there is a run in this folder already",
            str(folder),
            f"continue it with --resume {folder}, or choose another --out",
        )
    if os.path.isdir(folder) and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise RunError("this folder is not empty", str(folder), "choose another --out")


def abandon(folder: Path, stood: list[Path]) -> None:
    """Take away a run's folder in which nothing was trained, so that the corrected command can have it.

    stood: what was there before the folder was made; hidden files in it stay.
    """
    for path in folder.iterdir():
        if path.name == LOCK or not path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (folder, *folder.parents):
        if path in stood or any(path.iterdir()):
            break
        path.rmdir()


def save_recipe(recipe: Config, folder: Path) -> None:
    with atomic_write(folder / RECIPE) as file:
        file.write(dump_yaml(recipe))


def find_run(text: str | Path) -> Path:
    """The run folder that OUT, OUT/latest or OUT/step-N names. Raises RunError."""
    path = Path(text)
    if os.path.isfile(path / RECIPE):
        return path
    if (path.name in ("latest", "best") or path.name.startswith("step-")) and os.path.isfile(path.parent / RECIPE):
        return path.parent
    raise RunError("no run to resume here: there is no recipe.yaml", str(path), "give the --out folder of a run")


def _resumed_recipe(
    folder: Path, given: Any, overrides: dict[str, Any] | None, load: Callable[..., Any]
) -> tuple[Any, bool]:
    """The recipe of the run in `folder`, with the harmless changes asked for; and whether its length is one."""
    saved = load(folder / RECIPE)
    wanted = given if given is not None else load(folder / RECIPE, overrides)
    wanted = _as_settled(wanted, saved)
    if wanted.out is not None and Path(wanted.out).absolute() not in (
        folder.absolute(),
        Path(saved.out or "").absolute(),
    ):
        raise RunError("a resumed run stays in its folder", str(folder), "leave out --out")
    different = _differences(saved, wanted)
    lengths = {f"train.{name}" for name in saved.train.lengths}
    differing = [key for key in different if not _may_change(key) and key not in lengths]
    if differing and checkpoints(folder):
        before, now = _flat(saved.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
        lines = [f"{key}: {_show(before, key)} in the run, {_show(now, key)} now" for key in differing]
        lines.append("a resume may change only its length, log.*, parallel.*, train.keep, train.rollbacks,")
        lines.append("budget.memory and description; for anything else start a new run")
        raise RunError(f"the recipe differs from the run's in {', '.join(differing)}", str(folder), "\n".join(lines))
    return wanted.model_copy(update={"out": saved.out, "base": saved.base}), bool(lengths.intersection(different))


def _as_settled(wanted: Any, saved: Any) -> Any:
    """What `wanted` leaves open was settled when the run began."""
    for section, name, left_open in _SETTLED:
        settings = getattr(wanted, section)
        if name in type(settings).model_fields and getattr(settings, name) == left_open:
            settled = settings.model_copy(update={name: getattr(getattr(saved, section), name)})
            wanted = wanted.model_copy(update={section: settled})
    stages, were = (getattr(recipe.train, "stages", ()) for recipe in (wanted, saved))
    if len(stages) == len(were):
        settled = [
            stage.model_copy(update={"microbatch": was.microbatch}) if stage.microbatch is None else stage
            for stage, was in zip(stages, were, strict=True)
        ]
        if settled:
            train = wanted.train.model_copy(update={"stages": tuple(settled)})
            wanted = wanted.model_copy(update={"train": train})
    return wanted


def _differences(first: Config, second: Config) -> list[str]:
    before, now = _flat(first.model_dump(mode="json")), _flat(second.model_dump(mode="json"))
    return [key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...)]


def _may_change(key: str) -> bool:
    return key in _MAY_CHANGE or key.startswith(_MAY_CHANGE_SECTIONS)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _show(values: dict[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "not set"


def next_free(parent: Path, name: str) -> Path:
    """Make and return parent/NAME-N; making it is what claims it from another process."""
    with clear_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        try:
            (parent / f"{name}-{number}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{name}-{number}"
    raise AssertionError("unreachable")
