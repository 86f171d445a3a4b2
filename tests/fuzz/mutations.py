"""Damage done to files, seeded: to bytes, to the values inside JSON and YAML, to headers, to templates."""

from __future__ import annotations

import json
import random
from typing import Any

# What JSON and YAML can hold and nobody expects; small, because size is a mutation of its own.
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**31 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1,
    10**30, -(10**30), 10**99, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e300, -1e300, float("inf"), float("-inf"), float("nan"),
    "", " ", "0", "x", "\0", "\n", "..", "/", "~nobody/x", "a" * 300, "a" * 5000, "é" * 100, "\U0001f600", "\ud800",
    "<|im_end|>", "{{", "%s", "🙂\u202e", "(((a+)+)+)+!", "true", "1__0", "none", [], {}, [[]], [None], {"": None},
    [0] * 1000, {"a": {"a": {}}}, {"kind": "x"}, {"kind": "gqa"}, ["a"] * 50, [-1, 2**40], {"content": 5},
]  # fmt: skip
NUMBERS = [b"1" * 400, b"1" * 5000, b"-" + b"9" * 30, b"1e400", b"-1e999", b"NaN", b"0x10", b"1_", b"00"]
EXPRESSIONS = [
    "{{ a }}" * 50,
    "{{ messages }}",
    "{{ messages[0].content * 100000 }}",
    "{{ 'x' * 99999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% for i in range(99999) %}{{ i }}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}",
    "{{ range(99999)|list|reverse|select('in', messages)|list }}",
    "{{ range(99999)|map('string')|join }}",
    "{%",
    "{{",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages|tojson(indent=9) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ [1] * 9999999 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ ('a' * 99999)|urlize }}",
    "{{ messages|groupby('role')|list }}",
    "{% set ns = namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ {}.x.y }}",
    "{{ range(99999)|list|batch(1)|list|sum(start=[])|length }}",
    "{{ not not not a }}",
    "{{ " + "(" * 300,
    "{# ",
    "{% if 'a' in (range(99999)|list) %}{% endif %}" * 20,
    "{{ a" + ".a" * 500 + " }}",
    "{{ a" + "|trim" * 500 + " }}",
    "{{ a" + "|trim" * 90 + " }}" * 9,
    "{{ ('a ' * 99999)|wordwrap(1) }}",
    "{{ ('<!--' * 9999)|striptags }}",
    "{% generation %}",
    "{% break %}",
    "\0",
    "{{ raise_exception('x') }}",
    "{{ strftime_now('%999999999Y') }}",
    "{{ cycler }}",
    "{{ lipsum(9999) }}",
    "{{ 1 // 0 }}",
    "{% set x = range(99999)|list %}{{ x == x ~ 'a' }}{{ x|sort|unique|map('upper')|list|length }}",
    "{{ self }}{{ loop }}",
    "{{ ('ab,' * 99999).split(',')|length }}",
    "{{ messages|map(attribute='a.b.c.d.e.f')|list }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{{ namespace(a=1).a.b.c }}",
    "{{ messages[::-1][::2] }}",
    "{{ (1,) * 99999 }}",
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to twenty faults in bytes: flips, cuts, repeats, numbers, an end too early, junk, nesting."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 20])):
        at = rng.randrange(len(found) + 1)
        if rng.random() < 0.4:  # headers stand at the beginning, or like Parquet's at the end
            at = min(rng.randrange(200), len(found)) if rng.random() < 0.6 else max(len(found) - rng.randrange(200), 0)
        length = rng.choice([1, 1, 2, 8, 40, 400])
        kind = rng.randrange(12)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length] * rng.choice([1, 2, 50])
        elif kind == 4:
            found[at : at + 8] = rng.choice([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 5:
            found[at : at + 4] = rng.choice([0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
        elif kind == 6 and rng.random() < 0.5:
            del found[at:]
        elif kind == 7:
            found[at:at] = rng.choice(NUMBERS)
        elif kind == 8:
            found[at:at] = rng.choice([b"[", b"{", b'{"a":', b"(", b"- "]) * rng.choice([1, 3, 90, 150, 5000, 100_000])
        elif kind == 9:
            found[at:at] = rng.choice([b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\\", b"\n", b"\r", b"\t", b"&a *a"])
        elif kind == 10:
            other = rng.randrange(len(found) + 1)
            found[at : at + length] = found[other : other + length]
        elif kind == 11:
            found[at:at] = rng.randbytes(length)
    return bytes(found)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to four of its parts replaced, removed, renamed or nested."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = list(_places(value))
        if not places:
            return rng.choice(HOSTILE)
        holder, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 6:
            holder[key] = rng.choice(HOSTILE)
        elif kind == 6:
            del holder[key]
        elif kind == 7:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        elif kind == 8 and isinstance(holder, dict):
            holder[str(rng.choice(HOSTILE))[:99]] = holder.pop(key)
        elif kind == 9:
            other, its = rng.choice(places)
            if its in other if isinstance(other, dict) else its < len(other):
                holder[key] = json.loads(json.dumps(other[its]))
    return value


def _places(value: Any) -> Any:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Mostly still JSON."""
    text = json.dumps(changed(json.loads(data), rng)).encode()
    return damaged(text, rng) if rng.random() < 0.25 else text


def damaged_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON Lines, of which one is damaged."""
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A header with other values, its length kept right or not."""
    length = int.from_bytes(data[:8], "little")
    header = damaged_json(data[8 : 8 + length], rng)
    told = len(header) if rng.random() < 0.9 else rng.choice([0, 1, len(header) + 1, 2**40, 2**64 - 1])
    return told.to_bytes(8, "little") + header + data[8 + length :]


def damaged_template(data: bytes, rng: random.Random) -> bytes:
    """A template with something hostile in it, or pieces of it at other places."""
    text = data.decode()
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(text) + 1)
        if rng.random() < 0.7:
            at = max(text.find("{", at), 0)
        if rng.random() < 0.6:
            text = text[:at] + rng.choice(EXPRESSIONS) + text[at:]
        else:
            other = rng.randrange(len(text) + 1)
            text = text[:at] + text[other : other + rng.choice([1, 5, 30])] + text[at + rng.choice([0, 1, 5]) :]
    return text.encode("utf-8", "surrogatepass") if rng.random() < 0.9 else damaged(text.encode(), rng)
