"""Damaged data: rows of every form, tables, texts in every format, chat templates, token shards."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import zstandard
from pyarrow import parquet

from shoestring.data.chat import render_chat
from shoestring.data.loader import PackedLoader
from shoestring.data.prepare import Settings, prepare
from shoestring.data.shards import ShardFolder
from shoestring.data.tokenizer import Tokenizer
from tests.data import templates
from tests.data.families import QWEN3
from tests.fuzz.kind import Damage, Kind, call, command
from tests.fuzz.mutations import changed, damaged, damaged_json, damaged_lines, damaged_template
from tests.train.tiny import corpus

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": "z"}], "n": None}}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "array"}}}},
}
ROWS: list[list[dict[str, Any]]] = [
    [{"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "tools": [TOOL]}] * 3,
    [{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
                   {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "3"},
                   {"role": "assistant", "content": "b", "weight": 1}]}] * 3,
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}] * 3,
    [{"instruction": "a", "input": "b", "output": "c"}] * 3,
    [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}],
    [{"text": "a b c"}] * 3,
]  # fmt: skip


def rows(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    shutil.copytree(base, sound / "model")
    files: dict[str, list[Damage]] = {}
    for number, form in enumerate(ROWS):
        text = "".join(json.dumps(row) + "\n" for row in form)
        (sound / f"{number}.jsonl").write_text(text)
        (sound / f"{number}.json").write_text(json.dumps(form))
        files |= {f"{number}.jsonl": [damaged_lines, damaged], f"{number}.json": [damaged_json]}
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        table = [["question", "answer"], ["a", '"b\n c"'], ["d", "e"]]
        (sound / name).write_text("".join(f"{separator.join(row)}\n" for row in table))
        files[name] = [damaged]

    def read(it: Path, rng: random.Random) -> int:
        # The damaged one is the newest.
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("data", "show", file, "--model", it / "model", "-n", 1)

    return Kind("rows", sound, files, read)


def columns(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    shutil.copytree(base, sound / "model")
    for number, form in enumerate((ROWS[0], ROWS[2], ROWS[3])):
        parquet.write_table(pyarrow.Table.from_pylist(form), sound / f"{number}.parquet")
    files: dict[str, list[Damage]] = {
        f"{number}.parquet": [damaged_parquet, damaged_parquet, damaged] for number in range(3)
    }

    def read(it: Path, rng: random.Random) -> int:
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("data", "show", file, "--model", it / "model", "-n", 1)

    return Kind("columns", sound, files, read)


def damaged_parquet(data: bytes, rng: random.Random) -> bytes:
    """Rows with other values, where they still make columns."""
    rows = changed(parquet.read_table(pyarrow.BufferReader(data)).to_pylist(), rng)
    whole = pyarrow.BufferOutputStream()
    try:
        parquet.write_table(pyarrow.Table.from_pylist(rows), whole)
    except (pyarrow.ArrowException, OverflowError, AttributeError, TypeError, ValueError):
        return damaged(data, rng)
    return whole.getvalue().to_pybytes()


def text(sound: Path, base: Path, rows: Path) -> Kind:
    """What a tokenizer is trained on and shards are made of, in every format."""
    sound.mkdir()
    content = [{"text": f"a line {n}", "id": n} for n in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in content).encode()
    (sound / "t.jsonl").write_bytes(lines)
    (sound / "t.txt").write_text("some text\n" * 50)
    (sound / "t.json").write_text(json.dumps(content, indent=1))
    (sound / "t.csv").write_text("id,text\n" + "".join(f'{n},"a ""line"" {n}"\n' for n in range(30)))
    (sound / "t.jsonl.gz").write_bytes(gzip.compress(lines))
    (sound / "t.jsonl.zst").write_bytes(zstandard.compress(lines))
    (sound / "t.txt.zst").write_bytes(zstandard.compress(b"some text\n" * 50))
    parquet.write_table(pyarrow.Table.from_pylist(content), sound / "t.parquet", row_group_size=10)
    files: dict[str, list[Damage]] = {file.name: [damaged] for file in sorted(sound.iterdir())}
    files["t.jsonl"].append(damaged_lines)
    files["t.json"].append(damaged_json)

    def read(it: Path, rng: random.Random) -> int:
        file = max((it / name for name in files), key=lambda file: file.stat().st_mtime_ns)
        return command("prepare", file, "--vocabulary", 280, "--out", it / "out")

    return Kind("text", sound, files, read)


def template(sound: Path, base: Path, rows: Path) -> Kind:
    sound.mkdir()
    several = {
        "chatml": templates.CHATML,
        "qwen": templates.QWEN,
        "llama": templates.LLAMA,
        "all": templates.EVERYTHING,
    }
    for name, template in {**several, "qwen3": QWEN3}.items():
        (sound / name).write_text(template)
    messages = [{"role": "user", "content": "a <b> é"}, {"role": "assistant", "content": "<think>\nb\n</think>\n\nc"}]

    def read(it: Path, rng: random.Random) -> int:
        file = max(it.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        text = file.read_bytes().decode(errors="replace")
        return call(render_chat, text, messages * rng.choice([1, 1, 50]), [TOOL], bos_token="<s>", eos_token="</s>")

    return Kind("template", sound, {name: [damaged_template] for name in (*several, "qwen3")}, read)


def prepared(sound: Path, base: Path, rows: Path) -> Kind:
    return _token_shards("prepared", sound, base, compress=False)


def compressed(sound: Path, base: Path, rows: Path) -> Kind:
    return _token_shards("compressed", sound, base, compress=True)


def _token_shards(name: str, sound: Path, base: Path, compress: bool) -> Kind:
    """Token shards, read by a run's first step."""
    prepare(corpus(sound.parent / f"{name}-text"), Tokenizer.load(base), sound, settings=Settings(compress=compress))

    def open_it(it: Path) -> None:
        next(PackedLoader(ShardFolder(it), "train", 16, 2, seed=1))

    files: dict[str, list[Damage]] = {"index.json": [damaged_json, damaged]}
    for file in sorted(sound.iterdir()):
        if file.name.endswith((".bin", ".bin.zst", ".offsets", ".blocks")):
            files[file.name] = [damaged]
    return Kind(name, sound, files, lambda it, rng: call(open_it, it))
