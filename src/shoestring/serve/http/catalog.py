"""What is served: names, and the model and lane behind each. Adapters are models of their own over one base."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

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


def open_catalog(
    bases: Sequence[tuple[str, LanguageModel]],
    adapters: Sequence[Named],
    slots: int,
    capacity: int | None = None,
    say: Say | None = None,
) -> Catalog:
    """Lanes for models that are loaded, and for adapters on the one that each belongs to.

    capacity: tokens of each slot; None: the model's context. Raises ConfigError, ModelFileError.
    """
    parents = {name: Base(language) for name, language in bases}
    own = {name: base.active for name, base in parents.items()}  # of a model that was loaded with one
    live = {name: LiveAdapters(language) for name, language in bases}
    inner: list[tuple[str, str, str | None]] = []
    for adapter in adapters:
        parent = _parent(bases, adapter, say)
        live[parent].use(adapter.what, say)
        inner.append((adapter.name, parent, active_adapter(parents[parent].language.decoder)))
    for name, one in live.items():
        if one.active is not None:
            one.off()
        parents[name].active = active_adapter(parents[name].language.decoder)

    def lane(parent: str, adapter: str | None) -> Lane:
        context = parents[parent].language.decoder.config.context
        return Lane(parents[parent], slots, min(capacity or context, context), adapter)

    served = [Served(name, lane(name, own[name])) for name, _ in bases]
    return Catalog([*served, *(Served(name, lane(parent, adapter), parent) for name, parent, adapter in inner)])


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
