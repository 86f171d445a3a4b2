"""What is served: names, and the model and lane behind each. Adapters are models of their own over one base."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from shoestring.core.errors import ConfigError
from shoestring.generate.language_model import LanguageModel
from shoestring.generate.live_adapters import LiveAdapters
from shoestring.models.adapters import active_adapter
from shoestring.models.peft_folder import find_base
from shoestring.models.resolve import Say, find_model
from shoestring.serve.http.errors import ApiError
from shoestring.serve.http.lane import Base, Lane
from shoestring.serve.http.names import Named
from shoestring.serve.http.tool_form import ToolForm, tool_form


@dataclass(eq=False)
class Served:
    """A model that requests may name. parent: of an adapter, the base's name."""

    name: str
    lane: Lane
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def language(self) -> LanguageModel:
        return self.lane.base.language

    @property
    def converses(self) -> bool:
        """Whether it was taught to answer messages, and not only to continue text."""
        return self.language.tokenizer.chat_template is not None

    @functools.cached_property
    def tool_form(self) -> ToolForm:
        return tool_form(self.language.tokenizer)


class Catalog:
    """In the order in which they were named."""

    def __init__(self, served: Sequence[Served]):
        self.models = {one.name: one for one in served}

    @property
    def lanes(self) -> list[Lane]:
        return [one.lane for one in self.models.values()]

    def find(self, name: str) -> Served:
        """Raises ApiError."""
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f"there is no model {name!r:.200}: there are {known}", "model", "model_not_found")
        return self.models[name]


class Member(NamedTuple):
    """A name that is to be served. adapter: its name in the base. parent: of an adapter, the name of its base."""

    name: str
    base: Base
    adapter: str | None
    parent: str | None = None


def with_adapters(
    bases: Sequence[tuple[str, LanguageModel]], adapters: Sequence[Named], say: Say | None = None
) -> list[Member]:
    """Models that are loaded, and adapters, each put on the one that it belongs to.

    Raises ConfigError, ModelFileError.
    """
    parents = {name: Base(language) for name, language in bases}
    members = [Member(name, base, base.active) for name, base in parents.items()]
    live = {name: LiveAdapters(language) for name, language in bases}
    for adapter in adapters:
        parent = _parent(bases, adapter, say)
        live[parent].use(adapter.what, say)
        base = parents[parent]
        members.append(Member(adapter.name, base, active_adapter(base.language.decoder), parent))
    for name, one in live.items():
        if one.active is not None:
            one.off()
        parents[name].active = active_adapter(parents[name].language.decoder)
    return members


def open_catalog(members: Sequence[Member], slots: int, capacity: int | None = None) -> Catalog:
    """A lane for each. capacity: tokens of each slot; None: the model's context."""
    served = []
    for member in members:
        context = member.base.language.decoder.config.context
        lane = Lane(member.base, slots, min(capacity or context, context), member.adapter)
        served.append(Served(member.name, lane, member.parent))
    return Catalog(served)


def _parent(bases: Sequence[tuple[str, LanguageModel]], adapter: Named, say: Say | None) -> str:
    """The name of the model that an adapter is put on."""
    if len(bases) == 1:
        return bases[0][0]
    base = find_base(find_model(adapter.what, say=say), say).resolve()
    fitting = [name for name, language in bases if language.folder is not None and language.folder.resolve() == base]
    if len(fitting) != 1:
        raise ConfigError(
            f"--adapter {adapter.name}={adapter.what} was trained on {base}, which is not one of the models served",
            hint=f"serve it too: shoestring serve {base}",
        )
    return fitting[0]
