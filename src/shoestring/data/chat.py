"""Chat templates: a conversation to the exact text that an instruct model was trained on.

A template is a Jinja program that comes with a downloaded model, so it is run as hostile code: in Jinja's
immutable sandbox, and within limits on loop steps, on text written and on the size of any value it makes.
The environment (trimmed blocks, loop controls, `raise_exception`, `strftime_now`, `tojson`, `generation`) is
that of transformers' `apply_chat_template`, whose output it reproduces.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sized
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from shoestring.core.errors import TokenizerError

STEP_LIMIT = 200_000  # loop iterations and macro calls
SIZE_LIMIT = 16_000_000  # characters written in total, and the length of any one value
# An argument such as the width of ljust() decides the size of the result, before anyone can look at it.
NUMBER_LIMIT = 100_000


def render_chat(
    template: str,
    messages: list[dict[str, Any]],
    tools: list[Any] | None = None,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """Render a conversation. variables: what else the template may read (bos_token, enable_thinking, ...).

    Raises TokenizerError when the template is broken, refuses the conversation or exceeds its limits.
    """
    environment = _Environment()
    variables = {"documents": None, **variables}
    try:
        compiled = environment.from_string(_metered(environment.parse(template)))
        values = {
            **variables,
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        return "".join(compiled.generate(**values))
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the chat template is broken at its line {error.lineno}: {error.message}"
        ) from error
    except _TooMuch as error:
        raise TokenizerError(f"the chat template was stopped: {error}") from error
    except jinja2.TemplateError as error:
        raise TokenizerError(f"the chat template refuses this conversation: {error}") from error
    except Exception as error:  # a template is a program: it can fail in any way
        raise TokenizerError(f"the chat template fails: {type(error).__name__}: {error}") from error


class _TooMuch(Exception):
    pass


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote; for plain text the marks vanish."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with meters. One per rendering, since it counts."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=self._count_output,
        )
        self.steps = 0
        self.written = 0
        self.filters["tojson"] = _tojson
        self.filters = {name: _limited(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def tick(self, text_length: int) -> str:
        """Called in each loop iteration and macro call, with the length of the constant text inside."""
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise _TooMuch(f"more than {STEP_LIMIT:,} loop steps")
        self._write(text_length)
        return ""

    def concatenate(self, *values: Any) -> str:
        parts = [str(value) for value in values]
        _check_size(sum(map(len, parts)))
        return "".join(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and (isinstance(left, Sized) or isinstance(right, Sized)):
            sized, count = (left, right) if isinstance(left, Sized) else (right, left)
            _check_size(len(sized) * count if isinstance(count, int) else 0)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator in ("*", "**") and any(isinstance(x, int) and abs(x) > 1 << 63 for x in (left, right)):
            raise _TooMuch("numbers too large")
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise _TooMuch("numbers too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
        if getattr(__obj, "__func__", None) in (_Environment.tick, _Environment.concatenate):
            return __obj(*args)
        if isinstance(getattr(__obj, "__self__", None), str) and __obj.__name__ in ("format", "format_map"):
            _check_format(__obj.__self__, args, kwargs)
        _check_arguments(args, kwargs)
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def _count_output(self, value: Any) -> Any:
        text = value if isinstance(value, str) else str(value)
        self._write(len(text))
        return text

    def _write(self, length: int) -> None:
        self.written += length
        if self.written > SIZE_LIMIT:
            raise _TooMuch(f"more than {SIZE_LIMIT:,} characters written")


def _metered(tree: nodes.Template) -> nodes.Template:
    """Put a call to `tick` into each loop and macro, and make `a ~ b` a call that checks its size."""
    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        call = _environment_call("tick", [nodes.Const(text)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
    return _ConcatenationMeter().visit(tree)


class _ConcatenationMeter(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("concatenate", node.nodes, node.lineno)


def _environment_call(name: str, arguments: list[Any], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with arguments and result checked; keeps the marks by which Jinja passes the context."""

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ == "do_format":
            _check_format(str(args[0]), args[1:], kwargs)
        if function.__name__ == "do_replace" and len(args) > 3:
            _check_size(str(args[1]).count(str(args[2])) * len(str(args[3])))
        _check_arguments(args[1:], kwargs)
        return _checked(function(*args, **kwargs))

    return limited


def _check_size(size: int) -> None:
    if size > SIZE_LIMIT:
        raise _TooMuch(f"a value longer than {SIZE_LIMIT:,}")


def _check_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(isinstance(x, int) and abs(x) > NUMBER_LIMIT for x in (*args, *kwargs.values())):
        raise _TooMuch(f"a number above {NUMBER_LIMIT:,} as an argument")


def _check_format(pattern: str, *values: Any) -> None:
    """Widths in a format are sizes: refuse long digit runs, and widths taken from arguments."""
    digits = 0
    for character in pattern:
        digits = digits + 1 if character.isdigit() else 0
        if digits > len(str(NUMBER_LIMIT)) - 1:
            raise _TooMuch("a format with a huge width")
    if "*" in pattern and "%" in pattern:
        raise _TooMuch("a format with a computed width")


def _checked(value: Any) -> Any:
    if isinstance(value, (str, bytes, list, tuple, dict)):
        _check_size(len(value))
    return value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own tojson escapes HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
