"""Chat templates: a conversation to the exact text that an instruct model was trained on.

A template is a Jinja program that comes with a downloaded model, so it is run as hostile code: in Jinja's immutable
sandbox, and within limits on its length and on what it does (`data.chat_sandbox`). What it writes is that which
transformers' `apply_chat_template` writes.
"""

from __future__ import annotations

import functools
import itertools
import threading
from typing import Any

import jinja2
from jinja2 import nodes

from shoestring.core.errors import TokenizerError
from shoestring.data.chat_sandbox import Sandbox, TooLong, TooMuch, metered

LENGTH_LIMIT = 64_000  # characters of a template; real ones have up to 30,000
PIECES_LIMIT = 20_000  # of its names, signs, spaces and texts: compiling takes some 50 µs for each


def render_chat(
    template: str,
    messages: list[dict[str, Any]],
    tools: list[Any] | None = None,
    add_generation_prompt: bool = True,
    generation_marks: tuple[str, str] | None = None,
    **variables: Any,
) -> str:
    """Render a conversation. variables: what else the template may read (bos_token, enable_thinking, ...).

    generation_marks: texts put around what stands in `{% generation %}` blocks, to find it again; None: nothing.
    Raises TokenizerError when the template is broken, refuses the conversation or exceeds its limits.
    """
    variables = {"documents": None, **variables}
    if len(template) > LENGTH_LIMIT:
        raise TokenizerError(
            f"the chat template has {len(template):,} characters; at most {LENGTH_LIMIT:,} are possible"
        )
    try:
        environment, compiled = _compiled(template, generation_marks, threading.get_ident())
        values = {
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            environment.restart([messages, tools])
            return "".join(compiled.generate(**values))
        except TooLong:
            environment.restart([messages, tools])
            return "".join(compiled.generate(**values))
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is broken at its line {error.lineno}: {error.message}") from error
    except TooMuch as error:
        raise TokenizerError(f"the chat template was stopped: {error}") from error
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refuses this conversation: {error}") from error
    except Exception as error:  # a template is a program: it can fail in any way
        raise TokenizerError(f"the chat template fails: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=8)
def _compiled(template: str, generation_marks: tuple[str, str] | None, thread: int) -> tuple[Sandbox, jinja2.Template]:
    """Kept, because compiling costs more than rendering, and a data set renders one template many times.

    Each thread has its own: the environment counts.
    """
    environment = Sandbox()
    if sum(1 for _ in itertools.islice(environment.lex(template), PIECES_LIMIT + 1)) > PIECES_LIMIT:
        raise TooMuch(f"more than {PIECES_LIMIT:,} names, signs and texts")
    tree = environment.parse(template)
    if generation_marks is not None:
        for scope in tree.find_all(nodes.Scope):  # only our tag makes them
            before, after = (nodes.Output([nodes.TemplateData(mark)]) for mark in generation_marks)
            scope.body = [before, *scope.body, after]
    return environment, environment.from_string(metered(tree))
