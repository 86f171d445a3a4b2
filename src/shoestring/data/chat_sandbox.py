"""The sandbox that chat templates run in: Jinja's immutable one, with meters on all that may take long.

Limits are on time, loop steps, text written and the size of the values a template makes, each and together. In one
process, because a pipe to another costs as much as rendering: so whatever may take long is metered where it begins
(calls, operators, comparisons with `in`) or at each element (iterators), and filters whose time nobody can tell
beforehand (regular expressions over whole texts) are not there. The environment (trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, `tojson`, `generation`) is that of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized, ValuesView
from collections.abc import Set as AnySet
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

STEP_LIMIT = 100_000  # loop iterations and macro calls
SECONDS_LIMIT = 0.6  # of the processor: a machine that was asleep or busy has done nothing wrong
SIZE_LIMIT = 16_000_000  # characters in any one value
WRITTEN_LIMIT, WRITTEN_GROWTH = 100_000, 10  # characters written: so many, and so many times the conversation's
WORK_LIMIT = 64_000_000  # characters of all values made in one rendering
# An argument such as the width of ljust() decides the size of the result, before anyone can look at it.
NUMBER_LIMIT = 100_000
_EACH = 16  # an element costs more memory and time than a character

_LOOKING = ("length", "count", "first", "last")  # filters that cost nothing, often applied to all messages
_COMPUTED_WIDTH = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*\{")
_UNMETERED = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "random")
_ATTRIBUTE_DEPTH = 4  # a.b.c.d in map(attribute="a.b.c.d") and its like, read once for each element
# Where those that look at an attribute of each element are told which, if not by name (0: by name only).
_BY_ATTRIBUTE = {
    "map": 0, "selectattr": 1, "rejectattr": 1, "groupby": 1, "sum": 1, "unique": 2, "min": 2, "max": 2, "join": 2,
    "sort": 3,
}  # fmt: skip
_REPEATING = ("indent", "expandtabs", "tojson")  # their result grows with a value's size times a number


class TooMuch(Exception):
    """Which limit a template has reached."""


class TooLong(TooMuch):
    """That of time, which what Python collects meanwhile takes of, too: once may be chance."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote; for plain text the marks vanish."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with meters, which `restart` sets to zero for each rendering."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # folding constants costs the cube of the depth of an expression
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=self._count_output,
        )
        self.restart()
        self.filters["tojson"] = _tojson
        self.filters["sum"] = _sum
        for name in _UNMETERED:
            del self.filters[name]
        self.filters = {name: self._metered_filter(name, f) for name, f in self.filters.items()}
        self.filters |= {"concatenate": self.concatenate, "weighed": self.weighed}
        self.tests = {name: self._metered_test(f) for name, f in self.tests.items()}  # type: ignore[arg-type]
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def restart(self, given: Any = None) -> None:
        """given: the conversation, which is weighed only if much is written."""
        self._given, self._most_written = given, WRITTEN_LIMIT
        self._steps = 0
        self._written = 0
        self._made = 0
        self._deadline = time.monotonic() + SECONDS_LIMIT
        self._processor_deadline = time.thread_time() + SECONDS_LIMIT

    def tick(self, text_length: int) -> str:
        """Called in each loop iteration and macro call, with the length of the constant text inside."""
        self._steps += 1
        if self._steps > STEP_LIMIT:
            raise TooMuch(f"more than {STEP_LIMIT:,} loop steps")
        self._check_time()
        self._write(text_length)
        return ""

    def concatenate(self, *values: Any) -> str:
        self._make(sum(map(_weight, values)))
        return "".join(map(str, values))

    def weighed(self, value: Any) -> Any:
        """Called around what makes or walks over a value without a call: slices, comparisons with `in`."""
        self._check_time()
        self._make(_shallow(value))
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._check_time()
        if operator == "%" and isinstance(left, str):
            self._make(_check_format(left, right))
        elif operator == "*" and (isinstance(left, Sized) or isinstance(right, Sized)):
            sized, count = (left, right) if isinstance(left, Sized) else (right, left)
            self._make(_weight(sized) * count if isinstance(count, int) else 0)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._make(_weight(left) + _weight(right))
        elif any(isinstance(x, int) and abs(x) > 1 << 63 for x in (left, right)):
            raise TooMuch("numbers too large")
        elif operator == "**" and isinstance(right, int) and abs(right) > 64:
            raise TooMuch("numbers too large")
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N803
        if getattr(__obj, "__func__", None) is Sandbox.tick:
            return __obj(*args)
        self._check_time()
        if not isinstance(__obj, Macro):
            own = getattr(__obj, "__self__", None)
            own = own if isinstance(own, str) else None
            _check_call(getattr(__obj, "__name__", ""), (own, *args), kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        return self._measured(result)

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja replaces a string's `format` by a safe one, which this meters."""
        formatting = super().wrap_str_format(value)
        if formatting is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            _check_call("format", (value.__self__, *args), kwargs)
            return formatting(*args, **kwargs)

        return metered

    def _metered_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # copies the mark by which Jinja passes the context or the environment first
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._check_time()
            if name in _LOOKING:
                return function(*args, **kwargs)
            own = 1 if hasattr(function, "jinja_pass_arg") else 0
            _check_call(name, args[own:], kwargs)
            return self._measured(function(*args, **kwargs))

        return metered

    def _metered_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self._check_time()
            return function(*args, **kwargs)

        return metered

    def _measured(self, result: Any) -> Any:
        if type(result) is str:
            self._make(len(result))
            return result
        _weight(result)
        self._make(_shallow(result))
        return self._each(result) if hasattr(result, "__next__") and hasattr(result, "__iter__") else result

    def _each(self, elements: Iterator[Any]) -> Iterator[Any]:
        """What `map`, `select` and their like give one by one, to whoever walks over it."""
        for element in elements:
            self._check_time()
            self._make(_EACH)
            yield element

    def _make(self, size: int) -> None:
        """Count what is made, before it is where that can be told."""
        if size > SIZE_LIMIT:
            _check_size(size)
        self._made += size
        if self._made > WORK_LIMIT:
            raise TooMuch(f"values longer than {WORK_LIMIT:,} together")

    def _count_output(self, value: Any) -> str:
        self._write(_weight(value))
        return str(value)

    def _write(self, length: int) -> None:
        self._written += length
        if self._written > self._most_written and self._given is not None:
            # Wrapping messages takes so much and no more: what is written is encoded next, which nobody meters.
            self._most_written += WRITTEN_GROWTH * _weight(self._given)
            self._given = None
        if self._written > self._most_written:
            raise TooMuch(f"more than {self._most_written:,} characters written")

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline and time.thread_time() > self._processor_deadline:
            raise TooLong(f"more than {SECONDS_LIMIT:g} seconds")


def metered(tree: nodes.Template) -> nodes.Template:
    """Put a call to `tick` into each loop and macro, and make `a ~ b`, slices and `in` calls that check sizes."""
    metered: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
    for node in metered:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        function = nodes.EnvironmentAttribute("tick", lineno=node.lineno)
        call = nodes.Call(function, [nodes.Const(text)], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
    return _Meters().visit(tree)


class _Meters(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("concatenate", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("weighed", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """A comparison with something written out in the template costs nothing."""
        self.generic_visit(node)
        values = [node.expr, *(operand.expr for operand in node.ops)]
        small = any(isinstance(value, nodes.Literal) for value in values)
        if len(values) == 2 and (
            small and node.ops[0].op not in ("in", "notin") or isinstance(values[1], nodes.Literal)
        ):
            return node
        for operand in node.ops:
            operand.expr = _filtered("weighed", [operand.expr], node.lineno)
        return node


def _filtered(name: str, values: list[Any], line: int) -> nodes.Filter:
    """A filter is called directly, where a function goes through the whole sandbox."""
    return nodes.Filter(values[0], name, values[1:], [], None, None, lineno=line)


def _check_size(size: int) -> None:
    if size > SIZE_LIMIT:
        raise TooMuch(f"a value longer than {SIZE_LIMIT:,}")


def _shallow(value: Any) -> int:
    """What a value takes by itself, without what its elements take."""
    if isinstance(value, (str, bytes)):
        return len(value)
    return _EACH * len(value) if isinstance(value, (list, tuple, dict, AnySet)) else 0


def _weight(value: Any) -> int:
    """About the length of str(value), found without making it. Raises TooMuch above SIZE_LIMIT."""
    if type(value) is str:  # the usual case
        _check_size(len(value))
        return len(value) + _EACH
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        kind = type(item)
        total += _EACH
        if kind is str:
            total += len(item)
        elif kind is list or kind is tuple:
            _check_size(total + _EACH * (len(item) + len(waiting)))
            waiting += item
        elif kind is int or kind is bool or item is None:
            continue
        elif isinstance(item, (str, bytes)):
            total += len(item)
        elif isinstance(item, Namespace):
            waiting.append(item._Namespace__attrs)  # type: ignore[attr-defined]
        elif isinstance(item, Mapping):
            _check_size(total + _EACH * len(item))
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (Sequence, AnySet, ValuesView)) and not isinstance(item, range):
            _check_size(total + _EACH * (len(item) + len(waiting)))
            waiting += item
        if total > SIZE_LIMIT:
            _check_size(total)
    return total


def _check_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a filter (its value is args[0]) or a method of args[0] whose result would be too large."""
    given = (*args, *kwargs.values())
    numbers = [abs(value) for value in given if isinstance(value, int)]
    if any(number > NUMBER_LIMIT for number in numbers) and name != "range":
        raise TooMuch(f"a number above {NUMBER_LIMIT:,} as an argument")
    if name in _BY_ATTRIBUTE:
        at = _BY_ATTRIBUTE[name]
        attribute = kwargs.get("attribute", args[at] if len(args) > at > 0 else "")
        if isinstance(attribute, str) and attribute.count(".") + attribute.count(",") >= _ATTRIBUTE_DEPTH:
            raise TooMuch("an attribute of an attribute of ...")
    if name in ("format", "format_map") and isinstance(args[0], str):
        _check_format(args[0], given[1:])
    elif name == "replace" and len(given) > 2:
        old, new = str(given[1]), str(given[2])
        text = str(given[0])
        _check_size(len(text) + (text.count(old) + (not old)) * len(new))
    elif name in ("split", "rsplit", "list", "splitlines") and isinstance(args[0], str):
        # Each part is an object of its own, however short.
        separator = given[1] if len(given) > 1 and isinstance(given[1], str) and given[1] else ""
        parts = args[0].count(separator) if separator else len(args[0])
        _check_size(_EACH * parts)
    elif name in ("join", "translate"):
        weights = [_weight(value) for value in given]
        _check_size(max(weights, default=0) * (min(weights[:2], default=0) + 1))
    elif name in _REPEATING and given:
        _check_size(_weight(given[0]) * (max(numbers, default=1) + 1) // 16)


def _check_format(pattern: str, values: Any) -> int:
    """The most that a format makes, refused if too much: widths are sizes, and a value can be named many times."""
    widths, run = 0, ""
    for character in pattern + " ":
        if character.isdigit():
            run += character
        elif run:
            widths += int(run) if len(run) < 9 else SIZE_LIMIT + 1
            run = ""
    fields = pattern.count("%") + pattern.count("{")
    size = widths + len(pattern) + fields * _weight(values)
    _check_size(size)
    if _COMPUTED_WIDTH.search(pattern):
        raise TooMuch("a format with a computed width")
    return size


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own tojson escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's own, of numbers: a sum of lists copies each of them again and again."""
    values = iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable)
    total = start
    for value in values:
        if not isinstance(value, (int, float)) or not isinstance(total, (int, float)):
            raise jinja2.TemplateError("sum adds numbers")
        total += value
    return total


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
