"""Readers: every format gives the same rows; damage of any kind is one sentence with its place, in bounded memory."""

import gzip
import io
import json
import os
import re
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoestring.cli.main import main
from shoestring.core.errors import DataError
from shoestring.data.reading import json_list, kinds, streams
from shoestring.data.reading.json_list import list_rows
from shoestring.data.sources import Skipped, documents, split
from shoestring.data.supervised.rows import ExampleSource
from tests.data.formats import JSON, PACK, TABLES, write

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@contextmanager
def memory_below(size):
    """What Python holds at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | TEXTS, min_size=1, max_size=8), st.sampled_from([None, 1]), st.booleans())
@example(["a\r\nb", "\r", '"', ",", "\t;|", " ", "\ufeff", "\\"], None, False)
def test_all_formats_of_the_same_rows_give_the_same_documents_and_the_same_counts(texts, indent, ascii_only):
    texts = texts if any(text is not None for text in texts) else [*texts, "one that is there"]
    rows = [{"id": f"{n}", "text": text} for n, text in enumerate(texts)]
    good = [row for row in rows if row["text"] is not None]
    bad = {"bad lines": len(rows) - len(good)} if len(good) < len(rows) else {}
    expected = [(row["text"], split(row["id"], 0.5)) for row in good if row["text"]]
    with tempfile.TemporaryDirectory() as folder:
        for ending in (*JSON, *TABLES):
            how = {"ensure_ascii": ascii_only} | ({"indent": indent} if ending.split(".")[0] == "json" else {})
            file = write(Path(folder), ending, rows if ending in JSON else good, **how)
            skipped = Skipped()
            assert [(d.text, d.split) for d in _texts(file, skipped)] == expected
            assert skipped.counts == (bad if ending in JSON else {})  # a table has no nulls


def _texts(file, skipped):
    try:
        return list(documents(file, validation=0.5, on_bad_line="skip", skipped=skipped))
    except DataError as error:
        assert error.message.startswith("no text in this source")
        return []


@pytest.mark.parametrize("ending", [*JSON, *TABLES])
def test_every_format_gives_the_same_examples(tmp_path, ending):
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(9)]
    source = ExampleSource(write(tmp_path, ending, rows))
    assert [example.plain for example in source.examples(Skipped())] == [
        (row["prompt"], row["completion"]) for row in rows
    ]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in a folder"])
def test_compressed_text_is_as_many_documents_as_the_text_itself(tmp_path, packed, beside, monkeypatch):
    monkeypatch.setattr("shoestring.data.reading.text.PIECE_BYTES", 1000)
    text = "".join(f"line {n} 日本語\n" for n in range(400)) + "日本語" * 700
    found = []
    for ending in ("", packed):
        folder = tmp_path / f"with{ending}"
        folder.mkdir()
        (folder / f"a.txt{ending}").write_bytes(PACK[ending](text.encode()))
        if beside:
            (folder / "b.txt").write_text("other")
            (folder / "c.bin.gz").write_bytes(gzip.compress(b"\0\1"))
        skipped = Skipped()
        source = folder if beside else folder / f"a.txt{ending}"
        found.append([(d.text, None if beside else d.split) for d in documents(source, skipped=skipped)])
        assert skipped.counts == ({"binary files": 1} if beside else {})
    assert found[0] == found[1] and len(found[0]) > 5
    assert "".join(part for part, _ in found[0]).removesuffix("other") == text


# --- JSON lists ----------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(['"', "}", "},", "{", "\\", '\\"', "]", "[{", ",", "\\\\", 'a\\"b,]']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from([3, 4, 7, 9, 1000]))
def test_entries_of_a_list_are_those_that_a_whole_parse_gives(values, indent, ascii_only, at_once):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_AT_ONCE", at_once)
        file = Path(folder, "a.json")
        file.write_bytes(f"\ufeff \n{text}\n".encode("utf-8", "surrogatepass"))
        rows = list(list_rows(file, ("text",)))
        assert [row.content for row in rows] == values
        assert [row.number for row in rows] == list(range(1, len(values) + 1))
        lines = [int(re.search(r"a\.json:(\d+), entry", row.where)[1]) for row in rows]
        assert lines == sorted(lines) and (indent is None or len(set(lines)) == len(lines))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30) | st.text('[]{},:"\\ \n1a', max_size=30).map(lambda text: f"[{text}".encode()))
def test_any_bytes_are_a_list_or_a_sentence(content):
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        whole = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.json")
        file.write_bytes(content)
        try:
            found = [row.content for row in list_rows(file)]
        except DataError:
            assert not isinstance(whole, list)
        else:
            good = not any(isinstance(entry, DataError) for entry in found)
            assert repr(found) == repr(whole) if good else whole is None


BROKEN_LISTS = {
    '[{"text": "a"},\n {"text": "b"\n': r"a\.json:2: not valid JSON: the list does not end",
    '[{"text": "a"},\n]': r"a\.json:2, entry 2: not valid JSON: a comma and no entry beside it",
    '[{"text": "a"}]\n{"text": "b"}': r"a\.json:2: not valid JSON: there is more behind the list's end",
    '[{"text": "a"},\n{"text": "b" 3}]': r"a\.json:2, entry 2: not a JSON object: Expecting ',' delimiter at column 14",
    '[{"text": "a"},\n{"text": ["b"]}]': r"a\.json:2, entry 2: the field 'text' is a list, not a string",
    '[{"text": "a"},\n 3]': r"a\.json:2, entry 2: not a JSON object",
}


@pytest.mark.parametrize("content", BROKEN_LISTS)
def test_a_broken_list_is_told_with_its_line_and_entry(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=BROKEN_LISTS[content]):
        list(documents(tmp_path / "a.json"))


def test_a_bad_entry_is_left_out_and_counted_as_a_line_is(tmp_path):
    entries = [b'{"text": "a"}', b'{"text": "b" 3}', b'{"text": "\xe9"}', b"[[1]]", b'{"text": null}', b'{"text": "c"}']
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(entries) + b"]")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(entries))
    for name in ("a.json", "a.jsonl"):
        skipped = Skipped()
        found = documents(tmp_path / name, on_bad_line="skip", skipped=skipped)
        assert [d.text for d in found] == ["a", "c"] and skipped.counts == {"bad lines": 4}


# --- damage --------------------------------------------------------------------------------------------------


def _frames():
    """Three frames of zstd, with and without a checksum and a size, and one to be skipped between them."""
    contents = [b'{"text": "one"}\n' * 50, os.urandom(300).hex().encode(), b"\n" + b"x" * 400_000]
    first = zstandard.ZstdCompressor(write_checksum=True).compress(contents[0])
    skipped = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    second = zstandard.ZstdCompressor(write_content_size=False).compress(contents[1])
    third = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(contents[2])
    return [first, skipped, second, third], b"".join(contents)


def test_frames_of_zstd_are_followed_and_each_cut_but_between_them_is_told(tmp_path):
    frames, content = _frames()
    whole = b"".join(frames)
    ends = {sum(map(len, frames[:n])) for n in range(len(frames) + 1)}
    file = tmp_path / "a.txt.zst"
    for size in (1, 2, 3, 7, 1000):
        passed = streams._Frames(io.BytesIO(whole), file)
        assert b"".join(iter(lambda passed=passed, size=size: passed.read(size), b"")) == whole
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        try:
            with streams.opened(file) as stream:
                found = stream.read()
        except DataError as error:
            assert "damaged compression" in str(error) and cut not in ends
        else:
            assert cut in ends and content.startswith(found)
    assert found == content


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_cut_and_changed_compression_is_a_sentence_with_file_and_line(tmp_path, packed, ending):
    rows = [{"id": f"{n}", "text": os.urandom(12).hex()} for n in range(500)]
    text = json.dumps(rows, indent=0).encode() if ending == "txt" else None
    plain = text or write(tmp_path, ending, rows).read_bytes()
    data = PACK[packed](plain)
    file = tmp_path / f"a.{ending}{packed}"
    for wrong in (data[:-2], data[: len(data) // 2], data[:7], b"no compression at all"):
        file.write_bytes(wrong)
        for on_bad_line in ("stop", "skip"):  # a damaged file stops, whatever is said of lines
            with pytest.raises(DataError, match=r"damaged compression") as caught:
                list(documents(file, on_bad_line=on_bad_line))
            assert re.fullmatch(re.escape(str(file)) + r"(:\d+)?", caught.value.where)
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(plain) if packed == ".zst" else data
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 8] = b"\xff" * 8
    file.write_bytes(bytes(broken))
    with pytest.raises(DataError) as caught:  # of the compression, or of what came out of it
        list(documents(file))
    assert caught.value.where.startswith(str(file))
    file.write_bytes(data)
    assert len(list(documents(file, validation=0))) == (1 if ending == "txt" else 500)


def _bomb(blocks, window=0x38):
    """A frame of zstd whose blocks of four bytes are 128 KiB of the letter a each (RFC 8878)."""
    header = (0xFD2FB528).to_bytes(4, "little") + bytes([0, window])
    runs = [((n == blocks - 1) | 1 << 1 | 2**17 << 3).to_bytes(3, "little") + b"a" for n in range(blocks)]
    return header + b"".join(runs)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json"])
def test_a_bomb_is_refused_without_being_held(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(streams, "LINE_LIMIT", 2**20)
    begin = {"jsonl": b'{"text": "', "csv": b"text\n", "json": b'[{"text": "'}[ending]
    file = tmp_path / f"a.{ending}.zst"
    file.write_bytes(zstandard.compress(begin) + _bomb(512))
    assert file.stat().st_size < 3000
    with memory_below(12 * 2**20), pytest.raises(DataError, match=r"longer than 1 MiB") as caught:
        list(documents(file))
    assert caught.value.where.startswith(f"{file}:")


def test_behind_a_line_without_end_the_next_is_read_when_it_may_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LINE_LIMIT", 2**20)
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(_bomb(512) + zstandard.compress(b'\n{"text": "next"}\n'))
    skipped = Skipped()
    with memory_below(12 * 2**20):
        assert [d.name for d in documents(file, on_bad_line="skip", skipped=skipped)] == ["a.jsonl.zst:2"]
    assert skipped.counts == {"bad lines": 1}


def test_a_window_of_gigabytes_is_refused(tmp_path):
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(_bomb(3, window=0xA8))
    with pytest.raises(DataError, match="it takes a window of 2,048 MiB to unpack, more than 128"):
        list(documents(file))


BEGINNINGS = {
    "a.jsonl": (b"", r"a\.jsonl:1: a line longer than 64 MiB"),
    "a.csv": (b"text\n", r"a\.csv:2: a line longer than 64 MiB"),
    "a.json": (b'\n[{"text": "', r"a\.json:2: not valid JSON: an entry longer than 64 MiB"),
    "a.txt": (b"text", r"a\.txt: a binary file"),
    "a.parquet": (b"PAR1", r"a\.parquet: not a readable Parquet file"),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_line_of_a_gigabyte_is_never_held_whole(tmp_path, name):
    begin, sentence = BEGINNINGS[name]
    with open(tmp_path / name, "wb") as file:
        file.write(begin)
        file.truncate(2**30)  # the rest takes no room on the disk
    with memory_below(300 * 2**20), pytest.raises(DataError, match=sentence):
        list(documents(tmp_path / name))


def test_a_quotation_mark_that_nothing_closes_is_found_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("shoestring.data.reading.tables.CELL_LIMIT", 10_000)
    (tmp_path / "a.csv").write_text('id,text\n1,good\n2,"open\n' + "3,more text\n" * 10_000)
    with pytest.raises(DataError, match=r"a\.csv:3: not a readable row: field larger than field limit"):
        list(documents(tmp_path / "a.csv"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.zst"])
def test_long_files_are_streamed_in_the_memory_of_a_few_rows(tmp_path, ending):
    file = write(tmp_path, ending, [{"id": f"{n}", "text": f"{n} " + "x" * 40_000} for n in range(300)])
    with memory_below(4 * 2**20):
        assert sum(len(d.text) > 40_000 for d in documents(file)) == 300


def test_of_a_row_group_of_parquet_some_pages_are_in_memory_at_a_time(tmp_path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"{n} " + "x" * 40_000 for n in range(800)]})
    pyarrow.parquet.write_table(table, file, compression="none", use_dictionary=False, write_batch_size=16)
    del table
    assert pyarrow.parquet.read_metadata(file).num_row_groups == 1
    held, most = pyarrow.total_allocated_bytes(), 0
    for n, document in enumerate(documents(file)):
        assert document.text.startswith(f"{n} ")
        most = max(most, pyarrow.total_allocated_bytes() - held)
    assert n == 799 and most < 16e6 < file.stat().st_size / 2


# --- what is not UTF-8, and Parquet --------------------------------------------------------------------------

NOT_UTF8 = {
    "a.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n{"text": "b"}', r"a\.jsonl:2: not UTF-8: byte 0xe9 at column 11"),
    "a.json": (b'[{"text": "a"},\n{"text": "\xe9"}, {"text": "b"}]', r"a\.json:2, entry 2: not UTF-8: byte 0xe9"),
    "a.csv": (b"text\na\n\xe9\nb\n", r"a\.csv:3: not UTF-8: byte 0xe9"),
    "a.tsv": (b"id\ttext\n1\ta\n2\t\"x\n\xe9\"\n3\tb\n", r"a\.tsv:4: not UTF-8: byte 0xe9"),
}  # fmt: skip


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", NOT_UTF8)
def test_what_is_not_utf8_is_told_with_its_line_and_makes_one_row_bad(tmp_path, name, packed):
    content, sentence = NOT_UTF8[name]
    file = tmp_path / f"{name}{packed}"
    file.write_bytes(PACK[packed](content))
    with pytest.raises(DataError, match=sentence.replace(":", re.escape(packed) + ":", 1)):
        list(documents(file))
    skipped = Skipped()
    assert [d.text for d in documents(file, on_bad_line="skip", skipped=skipped)] == ["a", "b"]
    assert skipped.counts == {"bad lines": 1}


def test_names_of_columns_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,\xe9\na,b\n")
    with pytest.raises(DataError, match=r"a\.csv:1: not UTF-8: byte 0xe9"):
        list(documents(tmp_path / "a.csv"))


def _parquet(tmp_path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=2)
    return tmp_path / "a.parquet"


PARQUET = {
    "missing": ({"content": ["a", "b", "c"], "id": [1, 2, 3]}, "row group 1, row 1: no field 'text'; it has 'content'"),
    "null": ({"text": ["a", "b", None], "url": ["u"] * 3}, "row group 2, row 3: the field 'text' is null, not a string;"
             " there are 'text', 'url'"),
    "list": ({"text": [["a"], ["b"], []], "url": ["u"] * 3}, "row group 1, row 1: the field 'text' is a list"),
    "struct": ({"text": [{"en": "a"}] * 3}, "row group 1, row 1: the field 'text' is an object, not a string"),
    "bytes": ({"text": [b"a", b"b", b"c"]}, "row group 1, row 1: the field 'text' is bytes, not a string"),
    "number": ({"text": [1, 2, 3]}, "row group 1, row 1: the field 'text' is a number, not a string"),
    "utf8": ({"text": pyarrow.array([b"a", b"b", b"\xb5"], pyarrow.binary()).view(pyarrow.string())},
             "row group 2, row 3: a text that is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARQUET)
def test_a_column_that_is_not_text_is_told_with_row_group_and_columns_or_counted(tmp_path, case):
    columns, sentence = PARQUET[case]
    file = _parquet(tmp_path, **columns)
    with pytest.raises(DataError, match=re.escape(f"a.parquet: {sentence}")):
        list(documents(file))
    skipped = Skipped()
    good = 2 if case in ("null", "utf8") else 0
    (tmp_path / "note.txt").write_text("a note")
    assert len(list(documents(tmp_path, on_bad_line="skip", skipped=skipped))) == good + 1
    assert skipped.counts == {"bad lines": 3 - good}


def test_a_page_of_parquet_that_is_damaged_is_told_with_its_row_group(tmp_path):
    rows = [{"text": os.urandom(100).hex()} for _ in range(6)]
    file = write(tmp_path, "parquet", rows)
    data = bytearray(file.read_bytes())
    at = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    data[at : at + 20] = b"\xff" * 20
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"row group 2, after row 3: not a readable Parquet file") as caught:
        list(documents(file))
    assert "\n" not in caught.value.message


def test_parquet_in_another_compression_is_refused(tmp_path):
    file = write(tmp_path, "parquet", [{"text": "a"}])
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(DataError, match="Parquet inside another compression cannot be read"):
        list(documents(packed))


def test_endings_decide_the_reader():
    names = {"A.JSONL.GZ": "jsonl", "a.ndjson.zst": "jsonl", "a.json": "json", "a.b.tsv.gz": "table", "x.parquet":
             "parquet", "notes.txt.gz": "text", "jsonl": "text", "a.gz": "text"}  # fmt: skip
    assert {name: kinds.kind_of(Path(name)) for name in names} == names


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "bomb.jsonl.zst", "other.parquet", "long.csv"])
def test_on_the_command_line_it_is_one_sentence_and_exit_2_and_nothing_is_written(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(streams, "LINE_LIMIT", 2**20)
    rows = "".join(json.dumps({"text": f"line {n} {n * n}"}) + "\n" for n in range(2000)).encode()
    contents = {"cut.jsonl.gz": gzip.compress(rows)[:-100], "bomb.jsonl.zst": zstandard.compress(rows) + _bomb(64),
                "long.csv": b"text\n" + b"x" * 2**21}  # fmt: skip
    file = tmp_path / name
    if name in contents:
        file.write_bytes(contents[name])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"content": ["a", "b"]}), file)
    out = tmp_path / "out"
    assert main(["prepare", str(file), "--vocabulary", "280", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and re.search(re.escape(str(file)) + r":(\d+|row group 1, row 1)?", told)
    assert "Traceback" not in told and [path for path in out.iterdir() if path.name[0] != "."] == []
