"""`finetune_over` and `pretrain_over`: the first machine's side of a run, from looking at it to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoestring.core import console
from shoestring.core.errors import ConfigError
from shoestring.core.waiting import waiting
from shoestring.laptops.config import MachinesConfig, is_loopback, load_machines, one_address, parse_address
from shoestring.laptops.coordinate import Coordinator
from shoestring.laptops.crew import Crew
from shoestring.laptops.handshake import check_token, new_token
from shoestring.laptops.process import call
from shoestring.laptops.project import Project


def finetune_over(
    machines: str | Path | MachinesConfig,
    model: str | Path | None = None,
    data: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    token: str | None = None,
    listen: str | None = None,
    wait: str | None = None,
) -> dict[str, Any]:
    """Fine-tune `model` on the examples in `data` over several machines, of which this is the first, or continue the
    run in the folder `resume`. The others come by `join`.

    machines: a machines.yaml. overrides: settings by their dotted names, as `finetune` takes them. token: that the
    others must know; None draws one, which is shown. listen, wait: instead of what the file says. -> {"text": the
    result for a person, "json": its figures, among them the peak memory of each machine's worker by name}. Raises what
    `finetune` raises, NetworkError where nobody comes, and KeyboardInterrupt once everything is saved because someone
    pressed Ctrl-C.
    """
    asked = _asked("finetune", None if model is None else str(model), resume, overrides)
    return _train(machines, {**asked, "data": None if data is None else str(data)}, token, listen, wait)


def pretrain_over(
    machines: str | Path | MachinesConfig,
    recipe: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    token: str | None = None,
    listen: str | None = None,
    wait: str | None = None,
) -> dict[str, Any]:
    """Train as the recipe says over several machines; all else as `finetune_over`."""
    return _train(machines, _asked("pretrain", recipe, resume, overrides), token, listen, wait)


def _asked(
    verb: str, recipe: str | Path | None, resume: str | Path | None, overrides: dict[str, Any] | None
) -> dict[str, Any]:
    settings = {key: value for key, value in (overrides or {}).items() if value is not None}
    return {
        "verb": verb, "recipe": None if recipe is None else str(recipe),
        "resume": None if resume is None else str(resume), "settings": settings,
    }  # fmt: skip


def _train(
    machines: str | Path | MachinesConfig, asked: dict[str, Any], token: str | None, listen: str | None,
    wait: str | None,
) -> dict[str, Any]:  # fmt: skip
    if "budget.memory" in asked["settings"]:
        raise ConfigError(
            "budget.memory is of one machine", hint="memory stands beside each machine's name in machines.yaml"
        )
    return conduct(machines, asked, Project, token, listen, wait)


def conduct(
    machines: str | Path | MachinesConfig, asked: dict[str, Any], make: Callable[[dict[str, Any], str], Any],
    token: str | None, listen: str | None, wait: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Look at what is asked for, open the door, and see it to its end. make: a `coordinate.Work` of what was found."""
    config = load_machines(machines, listen, wait)
    address = one_address(parse_address(config.listen))
    token = new_token() if token is None else check_token(token)
    with waiting("opening   the model and the data"):
        survey = call("shoestring.laptops.survey", asked)
    work = make(survey, address.host)
    try:
        with waiting("measuring this machine"):
            machine = call("shoestring.laptops.describe", {})
        crew = Crew(config, address, token, machine, console.say)
        why = "it failed on the first machine"
        try:
            for line in invitation(config, crew, token):
                console.say(line)
            result = Coordinator(crew, work, console.say).run()
            why = "it is finished"
            result["json"]["machines"] = result.pop("peaks")
            return result
        except KeyboardInterrupt:
            why = "it was stopped on the first machine"
            console.say(f"stopped   {work.resume}")
            raise
        finally:
            crew.close(why)
    finally:
        work.close()


def invitation(config: MachinesConfig, crew: Crew, token: str) -> list[str]:
    """What each friend types. The token is not in the command, which shells remember."""
    here = crew.address
    lines = [f"listening {here}, for {', '.join(one.name for one in config.machines[1:])}"]
    if is_loopback(here):
        lines.append("          which only this machine reaches: others come through a tunnel, or set listen")
    lines += [f"join      shoestring join {here} --name {one.name} --memory 3GB" for one in config.machines[1:]]
    lines.append(f"token     {token}  (it is asked for; tell it to nobody else)")
    return lines
