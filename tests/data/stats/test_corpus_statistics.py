"""Statistics of a corpus: lengths and rows against counting, text and shards against one another, the verb as typed."""

import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest

from shoestring.cli.main import main
from shoestring.core.errors import DataError
from shoestring.data.prepare import prepare
from shoestring.data.quality.config import QualityConfig
from shoestring.data.sources import Source
from shoestring.data.stats import corpus as module
from shoestring.data.stats.corpus import shard_statistics, text_statistics
from shoestring.data.stats.lengths import Lengths
from shoestring.data.stats.rows import RowCounts
from shoestring.data.stats.show import bar
from shoestring.data.supervised.packing import best_fit_decreasing
from shoestring.data.train_tokenizer import train_tokenizer

WORDS = ["the", "cat", "Grüße", "日本", "12", "\n", "def f():", "of"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat Grüße 日本 12345 def f():"] * 9, vocabulary=290)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Some of them equal, some with nothing to see."""
    rng = random.Random(1)
    found = [" ".join(rng.choices(WORDS, k=rng.randint(0, 60))) for _ in range(300)]
    found[10:10] = ["\n \n", found[3], "   ", found[3], "\u3000"]
    return [text for text in found if text]


@pytest.fixture
def file(texts, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# Lengths and rows


def test_lengths_are_those_of_the_array():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(0, 300, 999), [0, 1, 65_535, 65_536, 65_537, 2**20, 2**20 - 1, 70_000, 9]])
    counted = Lengths()
    for part in np.array_split(lengths, 7):
        counted.add(part)
    assert (counted.count, counted.total) == (len(lengths), lengths.sum())
    assert (counted.shortest, counted.longest, counted.mean) == (0, 2**20, lengths.mean())
    for share in (0.001, 0.25, 0.5, 0.9, 0.99):
        assert counted.quantile(share) == np.quantile(lengths, share, method="inverted_cdf")
    assert counted.quantile(1) == 2**20 and 65_536 <= counted.quantile(0.997) < 2**17
    bins = counted.bins()
    assert [low for low, _, _ in bins] == [0] + [2**b for b in range(21)]
    assert all(((lengths >= low) & (lengths <= high)).sum() == count for low, high, count in bins)
    assert Lengths().bins() == [] and Lengths().quantile(0.5) == 0 and Lengths().shortest is None


def test_bars_have_the_length_of_their_share_and_show_the_smallest():
    assert bar(1) == "█" * 40 and bar(0.5) == "█" * 20 and bar(0) == "" and bar(1e-9) == "▏"
    assert [len(bar(n / 320)) for n in range(321)] == [-(-n // 8) for n in range(321)]


@pytest.mark.parametrize("length", [16, 50, 1024])
def test_rows_are_those_of_best_fit_and_cuts_those_of_one_long_stream(length):
    lengths = np.random.default_rng(2).geometric(1 / 40, 3000)
    counts = RowCounts(length)
    for part in np.split(lengths, [0, 1, 900, 900, 2999]):
        counts.add(part)
    pieces = [min(length, n - at) for n in lengths.tolist() for at in range(0, n, length)]
    rows = best_fit_decreasing(np.array(pieces), length, np.arange(len(pieces)))
    assert counts.padding == pytest.approx(1 - lengths.sum() / (len(rows) * length))
    row = np.arange(lengths.sum()) // length
    documents = np.split(row, np.cumsum(lengths)[:-1])
    assert counts.cut == sum(len({*document.tolist()}) > 1 for document in documents)
    assert counts.longer == sum(len(document) > length for document in documents) and counts.documents == 3000
    assert RowCounts(length).padding == 0


def test_rows_of_a_large_corpus_are_counted_in_windows_however_it_comes():
    lengths = np.random.default_rng(3).integers(1, 3000, 2500)
    whole, pieces = RowCounts(1024), RowCounts(1024)
    whole.add(lengths)
    for part in np.array_split(lengths, 40):
        pieces.add(part)
    assert whole.padding == pieces.padding and 0 < whole.padding < 0.02 and whole.cut == pieces.cut
    assert len(whole._window) <= 2 and whole._held < 2**20 < lengths.sum()


# Corpora


def test_text_is_counted_as_prepare_counts_it(file, texts, tokenizer):
    found = text_statistics({"rows": Source(file, validation=0)}, tokenizer, 64, QualityConfig())
    ids = [tokenizer.encode(text) for text in texts]
    figures = found.figures()
    names = ("documents", "tokens", "bytes", "bytes_per_token")
    assert figures["parts"]["rows"] == {name: figures[name] for name in names}
    assert figures["documents"] == len(texts) and figures["tokens"] == sum(len(i) + 1 for i in ids)
    assert figures["bytes"] == sum(len(text.encode()) for text in texts)
    assert figures["bytes_per_token"] == pytest.approx(figures["bytes"] / sum(map(len, ids)), abs=1e-4)
    assert figures["lengths"]["longest"] == max(map(len, ids)) and figures["lengths"]["unit"] == "tokens"
    assert sum(count for _, _, count in figures["lengths"]["bins"]) == len(texts)
    visible = [text for text in texts if text.strip()]
    left_out = {name: value["documents"] for name, value in figures["left_out"].items()}
    assert left_out == {
        "exact duplicates": len(visible) - len({*visible}),
        "near-empty documents": len(texts) - len(visible),
    }
    assert left_out["exact duplicates"] >= 2 and left_out["near-empty documents"] >= 3
    assert figures["rows"]["length"] == 64 and 0 < figures["rows"]["best_fit_padding"] < 0.1
    assert figures["rows"]["cut_by_concatenation"] > figures["rows"]["longer_than_a_row"] > 0
    json.dumps(figures)


class Folder:
    """What `ShardFolder` gives, of all texts in shards of these sizes: `prepare` may leave some out."""

    def __init__(self, texts, tokenizer, sizes):
        self.tokenizer, self.shards, first = tokenizer, [], 0
        for n, size in enumerate(sizes):
            own = texts[first : first + size]
            ids = [[tokenizer.separator_id, *tokenizer.encode(text)] for text in own]
            offsets = [np.cumsum([0, *map(len, part)]) for part in (ids, [text.encode() for text in own])]
            whole = np.array([i for part in ids for i in part], "<u2")
            names = {"name": f"train-{n:05d}", "documents": size, "tokens": len(whole)}
            self.shards.append(SimpleNamespace(**names, ids=whole, offsets=np.stack(offsets)))
            first += size

    def of(self, split):
        return self.shards if split == "train" else []

    def offsets(self, shard):
        return shard.offsets

    def tokens(self, shard):
        return shard.ids


@pytest.mark.parametrize("filters", [{}, {"fineweb": True, "gopher_repetition": True}])
def test_shards_hold_what_their_text_holds(file, texts, tokenizer, filters, monkeypatch):
    quality = QualityConfig(**filters)
    expected = text_statistics({"train": Source(file, validation=0)}, tokenizer, 64, quality).figures()
    folder = Folder(texts, tokenizer, [100, 1, len(texts) - 101])
    for at_once in (2**20, 50, 1):
        monkeypatch.setattr(module, "_AT_ONCE", at_once)
        found = shard_statistics({"folder": folder}, 64, quality).figures()
        firsts = [value.pop("first") for value in found["left_out"].values()]
        assert all(first is None or first.startswith("train-0000") and ": document " in first for first in firsts)
        counts = {name: {"documents": value["documents"]} for name, value in expected["left_out"].items()}
        assert {**found, "left_out": counts} == {**expected, "left_out": counts}
        if "\u3000" in texts and not filters:  # a wide space is several tokens, so it is taken for a character
            counts["near-empty documents"]["documents"] -= 1
        assert found["left_out"] == counts


def test_without_a_tokenizer_text_is_counted_in_bytes(file, texts):
    sources = {"a": Source(file, validation=0), "b": Source(file, validation=0)}
    figures = text_statistics(sources, None, 64, QualityConfig()).figures()
    size = sum(len(text.encode()) for text in texts)
    assert figures["tokens"] is None and figures["rows"] is None and figures["lengths"]["unit"] == "bytes"
    assert [part["bytes"] for part in figures["parts"].values()] == [size, size] and figures["bytes"] == 2 * size
    visible = [text for text in texts if text.strip()]
    assert figures["left_out"]["exact duplicates"]["documents"] == 2 * len(visible) - len({*visible})
    assert figures["lengths"]["longest"] == max(len(text.encode()) for text in texts)


# The verb


@pytest.fixture
def desk(file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def test_the_verb_prints_parts_lengths_rows_and_what_is_left_out(desk, texts, capsys):
    command = ["data", "stats", "rows.jsonl", "--tokenizer", "tokenizer", "--sequence-length", "64"]
    assert main([*command, "--filters", "fineweb", "--plot", "lengths.png"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert re.search(rf"^rows\.jsonl +{len(texts)} ", captured.out, re.MULTILINE) and "█" in captured.out
    for shown in ("lengths     shortest", "rows        of 64 tokens: best", " fineweb: ", "plot        lengths.png"):
        assert shown in captured.out
    assert (desk / "lengths.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["sources"] == ["rows.jsonl"] and figures["documents"] == len(texts) and figures["plot"] is None


def test_the_verb_reads_shards_with_their_own_tokenizer(desk, capsys):
    (desk / "text").mkdir()
    for n in range(40):
        (desk / "text" / f"{n}.txt").write_text(f"the cat of {n} " * (n + 1))
    shards = prepare("text", train_tokenizer(["the cat of 12"] * 9, vocabulary=270), "shards", validation=0.2)
    assert main(["data", "stats", "shards", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    for split in ("train", "validation"):
        part = figures["parts"][split]
        assert part["documents"] == shards.document_count(split) > 0
        assert (part["tokens"], part["bytes"]) == (shards.token_count(split), shards.byte_count(split))
    assert figures["rows"]["length"] == 1024 and figures["documents"] == 40
    assert main(["data", "stats", "shards"]) == 0
    assert "together" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["rows.jsonl", "--sequence-length", "64"], "--sequence-length counts tokens: give --tokenizer too"),
        (["rows.jsonl", "--filters", "gopher,c4"], "--filters c4: there are gopher, gopher-quality, "),
        (["rows.jsonl", "--plot", "lengths.pdf"], "--plot writes a .png"),
        (["rows.jsonl", "rows.jsonl"], "a SOURCE is given twice"),
        (["rows.jsonl", "--tokenizer", "tokenizer", "--sequence-length", "1"], "--sequence-length must be at least 2"),
        (["rows.jsonl", "--plot", "nowhere/lengths.png"], "nowhere/lengths.png: the plot cannot be written"),
        (["nothing"], "nothing: no such file or folder"),
        ([], "shoestring data stats needs SOURCE"),
    ],
)
def test_what_cannot_be_is_one_sentence(desk, capsys, flags, message):
    assert main(["data", "stats", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.out == ""


def test_flags_that_shards_do_not_use_are_refused(desk, capsys):
    (desk / "shards").mkdir()
    (desk / "shards" / "index.json").write_text("{}")
    for flags in (["--tokenizer", "tokenizer"], ["--text-field", "body"], ["--on-bad-line", "skip"]):
        assert main(["data", "stats", "shards", *flags]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flags[0]} is for text, and shards holds shards")
    assert main(["data", "stats", "shards", "rows.jsonl"]) == 2
    assert "either texts or folders of shards" in capsys.readouterr().err


def test_bad_lines_stop_or_are_counted(desk, texts, capsys):
    with open("rows.jsonl", "a") as rows:
        rows.write("{\n")
    assert main(["data", "stats", "rows.jsonl"]) == 2
    assert f"rows.jsonl:{len(texts) + 1}: " in capsys.readouterr().err
    assert main(["data", "stats", "rows.jsonl", "--on-bad-line", "skip"]) == 0
    assert "unread      1 bad lines" in capsys.readouterr().out
    with pytest.raises(DataError):
        text_statistics({"rows": Source("rows.jsonl")}, None, 64, QualityConfig())
