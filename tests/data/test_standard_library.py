"""What of the standard library is text that people wrote, and how a data set on the hub is named."""

import sysconfig
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from shoestring.core.errors import DataError, NetworkError
from shoestring.data import hub
from shoestring.data.sources import Skipped, Source, documents, split
from shoestring.data.standard_library import is_generated, share_of_numbers, share_repeated
from tests.data.fake_hub import FakeHub, unreachable


def test_tables_and_repeated_lines_are_generated_and_programs_are_not():
    table = "decoding_table = (\n" + "".join(f"    '\\u{n:04x}'  #  0x{n:02X} -> LETTER\n" for n in range(256)) + ")\n"
    repeated = "".join(f"name_{n}.value = other_{n}\n" for n in range(100))
    assert is_generated(table) and is_generated(repeated)
    assert share_of_numbers(table) > 0.3 and share_repeated(repeated) == 1.0
    library = Path(sysconfig.get_path("stdlib"))
    assert not any(is_generated((library / name).read_text()) for name in ("ast.py", "heapq.py", "json/decoder.py"))
    assert all(is_generated((library / "encodings" / name).read_text()) for name in ("cp1252.py", "koi8_r.py"))


def test_the_character_tables_are_not_among_the_documents_and_are_counted(tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text("def f(x):\n    return x\n")
    (tmp_path / "table.py").write_text("".join(f"0x{n:04x}: 0x{n:04x},\n" for n in range(100)))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    skipped = Skipped()
    assert [document.name for document in Source("stdlib").documents(skipped)] == ["code.py"]
    assert "generated" in str(skipped)


def test_a_folder_and_the_first_files_of_a_data_set_are_taken(monkeypatch, tmp_path):
    for name in ("README.md", "sample/a-train-2.parquet", "sample/a-train-1.parquet", "other/train.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    fake = FakeHub(monkeypatch, main=tmp_path)
    (found,) = hub.hub_files("hf:some/texts/sample[:1]", None)
    assert (found.name, found.size, fake.asked) == ("sample/a-train-1.parquet", 24, [("some/texts", "main")])
    assert fake.fetched == [] and found.fetch() == tmp_path / "sample/a-train-1.parquet"
    with pytest.raises(DataError, match="'hf:texts' is not a name on the hub"):
        hub.hub_files("hf:texts", None)


def test_a_hub_that_cannot_be_reached_is_a_sentence_for_pretraining_too(monkeypatch):
    unreachable(monkeypatch)
    with pytest.raises(NetworkError, match="could not be fetched from the hub: no route to host"):
        Source("hf:some/texts")


def test_rows_of_parquet_are_documents_alone_and_in_a_folder(tmp_path):
    rows = [{"content": f"text {n}", "id": f"page{n}", "url": "x"} for n in range(300)]
    file = tmp_path / "data" / "part.parquet"
    file.parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    found = list(documents(file, "content"))
    assert [document.text for document in found] == [row["content"] for row in rows]
    assert [document.split for document in found] == [split(row["id"], 0.05) for row in rows]
    (file.parent / "note.txt").write_text("a note")
    (file.parent / "other.txt").write_text("another")
    assert len(list(documents(file.parent, "content"))) == 302
    with pytest.raises(DataError, match="row 1: no field 'text'; it has 'content', 'id', 'url'"):
        list(documents(file))


def test_a_page_of_parquet_that_is_no_text_is_a_sentence(tmp_path):
    texts = pyarrow.array([b"a", b"\xb5"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "pages.parquet")
    with pytest.raises(DataError, match="row group 1, row 2: a text that is not UTF-8"):
        list(documents(tmp_path / "pages.parquet"))
