"""Where text is: globs, data sets with names of their own, the hub file by file; and reading from a later file on."""

import itertools
import json
import os
import re

import pytest

from shoestring.core.errors import DataError, NetworkError
from shoestring.data.built_in import BUILT_IN, find
from shoestring.data.reading import digests as kept
from shoestring.data.sources import Skipped, Source, documents
from shoestring.data.supervised.rows import ExampleSource, are_rows
from shoestring.evaluate.text import rows_of, texts_of
from tests.data.fake_hub import FakeHub, unreachable
from tests.data.formats import write

WEB = {"id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://example.org", "file_path": "s3://x",
       "language": "en", "language_score": 0.9, "token_count": 7, "score": 3.1, "int_score": 3}  # fmt: skip
PAGES = {
    "fineweb-edu": ("sample/10BT", [{"text": f"page {n}", **WEB, "id": f"{n}"} for n in range(5)]),
    "falcon-refinedweb": ("data", [{"content": f"page {n}", "url": "https://example.org", "timestamp": n,
                                    "dump": "d", "segment": "s", "image_urls": [["a", "b"]]} for n in range(5)]),
}  # fmt: skip
EXAMPLES = {
    "alpaca": [{"instruction": f"Add {n} and 1.", "input": "", "output": f"{n + 1}"} for n in range(5)],
    "gsm8k": [{"question": f"{n} + 1?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in range(5)],
}


def put(folder, name, content="some text\n"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)


# --- globs ---------------------------------------------------------------------------------------------------


def test_a_glob_takes_what_it_matches_in_order_and_names_it_from_its_fixed_part(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "b/.hidden.txt", "a/3.txt", "a/deep/er/4.txt", "a/no.md", "5.txt"):
        put(tmp_path, name, name)

    def found(pattern):
        return [d.name for d in documents(tmp_path / pattern)]

    assert found("*/*.txt") == ["a/3.txt", "b/1.txt", "b/2.txt"]
    assert found("b/?.txt") == ["1.txt", "2.txt"] and found("[5].txt") == ["5.txt"]
    assert found("**/*.txt") == ["5.txt", "a/3.txt", "a/deep/er/4.txt", "b/1.txt", "b/2.txt"]
    assert found("a*") == ["a/3.txt", "a/deep/er/4.txt", "a/no.md"]  # a folder stands for all in it
    with pytest.raises(DataError, match=r"\*\.pdf: no file matches this pattern"):
        found("*.pdf")
    put(tmp_path, "[x].txt", "brackets")
    assert found("[x].txt") == ["[x].txt"]  # a file of that name wins


def test_a_glob_of_rows_is_documents_examples_and_texts_to_measure(tmp_path, monkeypatch):
    for part in range(3):
        rows = [{"text": f"{part}.{n}"} for n in range(4)]
        write(tmp_path / f"{part}", "jsonl.gz", rows)
    put(tmp_path, "README.md")
    pattern = str(tmp_path / "*" / "rows.jsonl.*")
    expected = [f"{part}.{n}" for part in range(3) for n in range(4)]
    assert [d.text for d in documents(pattern)] == expected
    assert [example.plain[1] for example in ExampleSource(pattern).examples(Skipped())] == expected
    assert are_rows(pattern) and not are_rows(str(tmp_path / "*"))
    assert list(texts_of(pattern, rows_of(pattern))) == expected
    with pytest.raises(DataError, match="this pattern matches no file of examples"):
        ExampleSource(str(tmp_path / "*.md"))
    monkeypatch.chdir(tmp_path)
    assert [d.name for d in documents("*/rows.jsonl.gz")][:1] == ["0/rows.jsonl.gz:1"]


# --- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_web_text_by_name_is_read_from_its_column_on_the_hub_and_from_copies(tmp_path, monkeypatch, name):
    folder, rows = PAGES[name]
    (tmp_path / "hub" / folder).mkdir(parents=True)
    write(tmp_path / "copy", "parquet", rows).rename(tmp_path / "hub" / folder / "000_00000.parquet")
    fake = FakeHub(monkeypatch, main=tmp_path / "hub")
    source = Source(name)
    assert source.text_field == ("text" if name == "fineweb-edu" else "content")
    assert [d.text for d in source.documents()] == [f"page {n}" for n in range(5)]
    assert f"hf:{fake.asked[0][0]}" in BUILT_IN[name].source and source.size() > 100
    assert list(texts_of(name, rows_of(name))) == [f"page {n}" for n in range(5)]

    unreachable(monkeypatch)
    copy = tmp_path / "hub" / folder
    assert [d.text for d in documents(copy, source.text_field)] == [f"page {n}" for n in range(5)]
    monkeypatch.chdir(tmp_path)
    copy.rename(tmp_path / name)  # a folder of that name has the columns of that name
    assert [d.text for d in documents(name)] == [f"page {n}" for n in range(5)]
    assert list(texts_of(name, rows_of(name))) == [f"page {n}" for n in range(5)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_by_name_are_those_of_every_published_form(tmp_path, monkeypatch, name):
    rows = EXAMPLES[name]
    folder = tmp_path / "hub" / ("data" if name == "alpaca" else "main")
    folder.mkdir(parents=True)
    write(tmp_path / "made", "parquet", rows).rename(folder / "train-00000-of-00001.parquet")
    write(tmp_path / "made", "parquet", rows[:1]).rename(folder / "test-00000-of-00001.parquet")
    put(tmp_path, "alpaca_data.json", json.dumps(rows, indent=4))
    put(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    FakeHub(monkeypatch, main=tmp_path / "hub")
    places = [name, tmp_path / "alpaca_data.json", tmp_path / "train.jsonl", folder, tmp_path / "hub"]
    found = [[(e.messages, e.plain) for e in ExampleSource(place).examples(Skipped())] for place in places]
    assert len(found[0]) == 5 and all(each == found[0] for each in found)
    assert ExampleSource(name).form == ("alpaca" if name == "alpaca" else "prompt")


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_the_hub_one_sentence_names_what_to_give_instead(monkeypatch, name):
    unreachable(monkeypatch)
    open_it = ExampleSource if name in EXAMPLES else Source
    with pytest.raises(NetworkError) as caught:
        open_it(name)
    text = str(caught.value)
    assert "could not be fetched from the hub: no route to host" in text and "Parquet files" in text
    assert {"falcon-refinedweb": "--text-field content", "alpaca": "alpaca_data.json"}.get(name, "") in text
    assert caught.value.exit_code == 2


def test_a_name_may_be_followed_by_a_revision_and_a_number_of_files():
    source = BUILT_IN["fineweb-edu"].source
    assert find("fineweb-edu@v1[:3]")[0] == f"{source}@v1[:3]" and find("fineweb-edu[:1]")[0] == f"{source}[:1]"
    assert find("fineweb") == ("fineweb", None) and find("stdlib") == ("stdlib", None)


# --- the hub, file by file -----------------------------------------------------------------------------------


def test_files_of_the_hub_are_fetched_when_they_are_reached(tmp_path, monkeypatch):
    for part in range(4):
        file = write(tmp_path / "made", "parquet", [{"text": f"{part}.{n}"} for n in range(3)])
        file.rename(tmp_path / f"train-{part}.parquet")
    fake = FakeHub(monkeypatch, main=tmp_path)
    source = Source("hf:owner/name")
    before = source.fingerprint(), source.size()
    assert fake.fetched == []
    assert [d.text for d in itertools.islice(source.documents(), 4)] == ["0.0", "0.1", "0.2", "1.0"]
    assert fake.fetched == ["train-0.parquet", "train-1.parquet"]
    (_, inside), *_ = source.by_file(Skipped(), 3)
    assert [d.name for d in inside] == [f"train-3.parquet:{n}" for n in (1, 2, 3)]
    assert fake.fetched == ["train-0.parquet", "train-1.parquet", "train-3.parquet"]
    assert (Source("hf:owner/name").fingerprint(), source.size()) == before
    write(tmp_path / "made", "parquet", [{"text": "new"}]).rename(tmp_path / "train-2.parquet")
    assert Source("hf:owner/name").fingerprint() != before[0]


def test_a_file_that_cannot_be_fetched_later_is_a_sentence_with_its_name(tmp_path, monkeypatch):
    write(tmp_path, "parquet", [{"text": "a"}])
    FakeHub(monkeypatch, main=tmp_path)
    source = Source("hf:owner/name")
    unreachable(monkeypatch)
    with pytest.raises(NetworkError, match="hf:owner/name/rows.parquet: could not be fetched from the hub: no route"):
        list(source.documents())


# --- from a later file on ------------------------------------------------------------------------------------


def test_reading_from_a_later_file_on_gives_the_same_documents_under_the_same_names(tmp_path):
    write(tmp_path / "1", "jsonl", [{"text": f"{n}"} for n in range(5)])
    write(tmp_path / "2", "parquet", [{"text": f"{n}", "id": f"i{n}"} for n in range(5)])
    put(tmp_path, "0.txt", "text")
    put(tmp_path, "3.json", json.dumps([{"text": "a"}, {"text": 3}, {"text": "b"}]))
    (tmp_path / "4.bin").write_bytes(b"\0")
    source = Source(tmp_path, on_bad_line="skip")
    whole = Skipped()
    by_file = [(number, list(inside)) for number, inside in source.by_file(whole)]
    assert [number for number, _ in by_file] == list(range(5))
    assert [d for _, inside in by_file for d in inside] == list(source.documents())
    assert whole.counts == {"bad lines": 1, "binary files": 1}
    for first in range(6):
        again = Source(tmp_path, on_bad_line="skip").by_file(Skipped(), first)
        assert [(number, list(inside)) for number, inside in again] == by_file[first:]


# --- fingerprints --------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """Names of the files that were hashed, with everything worth keeping, in a cache of its own."""
    names = []
    whole = kept.sha256_file
    monkeypatch.setattr(kept, "sha256_file", lambda file: names.append(file.name) or whole(file))
    monkeypatch.setattr(kept, "WORTH_KEEPING", 0)
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path / "cache"))
    return names


def age(folder, seconds=10):
    for file in folder.rglob("*.txt"):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


def test_a_second_start_hashes_what_changed_alone_and_finds_the_same_value(tmp_path, hashed, monkeypatch):
    text = tmp_path / "text"
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        put(text, name, name)
    fresh = Source(text).fingerprint()
    assert sorted(hashed) == ["a.txt", "b.txt", "c.txt"]
    assert Source(text).fingerprint() == fresh and len(hashed) == 6  # just written: they may change within a tick
    age(text)
    assert [Source(text).fingerprint() for _ in range(3)] == [fresh] * 3 and len(hashed) == 9
    hashed.clear()
    put(text, "b.txt", "B.txt")  # as large as before
    changed = Source(text).fingerprint()
    assert changed != fresh and hashed == ["b.txt"]
    os.replace(text / "a.txt", text / "x.txt")
    put(text, "a.txt", "A.txt")
    stat = (text / "x.txt").stat()
    os.utime(text / "a.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and time: another inode
    os.remove(text / "x.txt")
    hashed.clear()
    now = Source(text).fingerprint()
    assert "a.txt" in hashed and now not in (fresh, changed)
    monkeypatch.setattr(kept, "WORTH_KEEPING", 2**60)
    hashed.clear()
    assert Source(text).fingerprint() == now and len(hashed) == 3


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_no_value(tmp_path, hashed, monkeypatch):
    text = tmp_path / "text"
    put(text, "a.txt", "a")
    age(text)
    value = Source(text).fingerprint()
    (file,) = (tmp_path / "cache" / "file-digests").iterdir()
    whole = file.read_text()
    for damage in ("", "[1]", whole[:-9], re.sub(r'"[0-9a-f]{64}"', "3", whole), whole.replace("text", "else")):
        file.write_text(damage)
        assert Source(text).fingerprint() == value
    assert len(hashed) == 6
    assert Source(text).fingerprint() == value and len(hashed) == 6  # mended
    monkeypatch.setenv("SHOESTRING_CACHE", str(text / "a.txt" / "none"))
    assert Source(text).fingerprint() == value and len(hashed) == 7


def test_what_is_remembered_of_files_has_a_bound_and_the_oldest_goes(tmp_path, hashed, monkeypatch):
    folders = [tmp_path / f"{n}" for n in range(4)]
    for folder in folders:
        put(folder, "a.txt", folder.name)
        age(folder)
    Source(folders[0]).fingerprint()
    cache = tmp_path / "cache" / "file-digests"
    (first,) = cache.iterdir()
    os.utime(first, (0, 0))
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * first.stat().st_size + 20)
    for folder in folders[1:]:
        Source(folder).fingerprint()
        assert len(list(cache.iterdir())) <= 2
    hashed.clear()
    Source(folders[3]).fingerprint()
    assert hashed == []
    Source(folders[0]).fingerprint()
    assert hashed == ["a.txt"]


def test_digests_of_files_that_are_gone_are_forgotten(tmp_path, hashed):
    text = tmp_path / "text"
    for name in ("a.txt", "b.txt"):
        put(text, name)
    age(text)
    Source(text).fingerprint()
    os.remove(text / "a.txt")
    put(text, "c.txt", "c")
    age(text)
    Source(text).fingerprint()
    (file,) = (tmp_path / "cache" / "file-digests").iterdir()
    assert sorted(json.loads(file.read_text())["files"]) == ["b.txt", "c.txt"]
