"""The grammar of an answer that may, or must, call functions, in llguidance's form of Lark.

In running text any text may come until it begins a call; from there on only a call of one of the tools, with arguments
that obey their schema, may follow (lazy lexemes: github.com/guidance-ai/llguidance, docs/syntax.md).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shoestring.serve.http.tool_form import ToolForm

# JSON as Python writes it, which is how templates show calls.
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


def call_grammar(form: ToolForm, tools: Sequence[dict[str, Any]], must: bool, several: bool) -> str:
    """tools: schemas of functions, as OpenAI has them. must: whether nothing but a call may come. several: calls."""
    rules, names = ["%llguidance {}", "", "TEXT: /(.|\\n)*/"], []
    for number, tool in enumerate(tools):
        function, name = tool["function"], f"call_{number}"
        schema = {**function["parameters"], "x-guidance": _STYLE}
        schema.setdefault("type", "object")
        begin, arguments = form.begin(function["name"]), json.dumps(schema)
        if must:
            head, rest = "", begin
        else:
            head, rest = f"head_{number} ", begin[len(form.trigger) :]
            rules.append(f"head_{number}[lazy]: TEXT {json.dumps(form.trigger)}")
        rules.append(f"{name}: {head}{_literal(rest)}%json {arguments} {_literal(form.behind)}".rstrip())
        names.append(name)
    one = " | ".join(names)
    if must:
        start = f'one ("\\n" one)*\none: {one}' if several else one
    else:
        start = f"({one})* rest\nrest: TEXT" if several else f"rest | {one}\nrest: TEXT"
    rules[1] = f"start: {start}"
    return "\n".join(rules) + "\n"


def _literal(text: str) -> str:
    return json.dumps(text) + " " if text else ""
