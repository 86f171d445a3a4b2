"""An Ollama Modelfile beside a GGUF file: template, end of an answer, context, and the model's own sampling.

Ollama renders conversations by a Go template. It is written where the model's chat template is a fixed form
(`chat_form`); where it is a program that is not, Ollama looks for one it knows, and the file says so.
Format: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

from typing import Any

from shoestring.data.tokenizer import Tokenizer
from shoestring.export.gguf.chat_form import ChatForm, chat_form
from shoestring.models.folder import GenerationDefaults

_QUOTES = '"""'
_USUAL_CONTEXT = 4096  # what Ollama takes at least, also of a model that was made for less
# What generation_config.json says -> what Ollama calls it.
_SETTINGS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}  # fmt: skip


def modelfile(
    file: str, tokenizer: Tokenizer, generation: GenerationDefaults, ends: list[int], context: int
) -> str:
    """The text of a Modelfile. file: the name of the GGUF file beside it."""
    lines = [f"FROM ./{file}"]
    form = chat_form(tokenizer)
    template = None if form is None else go_template(form, _bos(tokenizer))
    if template is not None and _QUOTES not in template:
        lines.append(f"TEMPLATE {_QUOTES}{template}{_QUOTES}")
    elif tokenizer.chat_template is not None:
        lines.append("# The chat template is more than a fixed form: Ollama takes one that it knows, or none.")
    names = [tokenizer.backend.id_to_token(i) for i in ends]
    lines += [f'PARAMETER stop "{name}"' for name in names if name and '"' not in name and name.isprintable()]
    if context < _USUAL_CONTEXT:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join([*lines, *_sampling(generation.settings)]) + "\n"


def go_template(form: ChatForm, bos: str | None = None) -> str:
    """bos: what is put before every text by itself, so that it must not stand in the template."""
    system = form.system
    opening = _without(form.opening, bos)
    roles = [("user", form.user), ("assistant", form.assistant)]
    if system is not None:
        roles.insert(0, ("system", (_without(system[0], bos), system[1])))
    cases = [
        f'{{{{ {"if" if n == 0 else "else if"} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}'
        for n, (role, (before, after)) in enumerate(roles)
    ]
    first = f"{{{{ if not .System }}}}{_go(opening)}{{{{ end }}}}" if opening and system is not None else _go(opening)
    return f"{first}{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{_go(form.prompt)}"


def _go(text: str) -> str:
    """Text as it stands in a Go template: what opens an action there is written as one that writes it."""
    return text.replace("{{", '{{ "{{" }}')


def _without(text: str, beginning: str | None) -> str:
    return text.removeprefix(beginning) if beginning else text


def _bos(tokenizer: Tokenizer) -> str | None:
    bos = tokenizer.bos_id
    return None if bos is None or not tokenizer.opens_with_bos() else tokenizer.backend.id_to_token(bos)


def _sampling(settings: dict[str, Any]) -> list[str]:
    if settings.get("do_sample") is False:
        return ["PARAMETER temperature 0"]
    found = [(theirs, settings.get(ours)) for ours, theirs in _SETTINGS.items()]
    return [f"PARAMETER {name} {value}" for name, value in found if type(value) in (int, float)]
