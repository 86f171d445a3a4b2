"""Two nodes of the engine write the shards that one process writes, byte for byte, whoever is killed on the way."""

import json

import pytest

from shoestring.core.errors import DataError
from shoestring.data.preparation.nodes import Work, encode_share, prepare_on_nodes, write_from_parts
from shoestring.data.preparation.parts import part_file
from shoestring.data.prepare import Settings, prepare
from shoestring.data.quality.config import QualityConfig
from shoestring.data.train_tokenizer import train_tokenizer
from tests.data.test_prepare import _contents

SETTINGS = Settings(900, quality=QualityConfig(gopher_quality=False))


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for part in range(5):
        lines = [json.dumps({"text": f"document {n % 37} of {n % 11} in a part"}) for n in range(part, 200, 3)]
        (folder / f"{part}.jsonl").write_text("\n".join([*lines, "{broken"]) + "\n")
    return folder


@pytest.fixture
def tokenizer():
    return train_tokenizer(["document 12345 of in a part 67890"] * 9, 300)


def test_two_nodes_write_the_same_shards(corpus, tokenizer, tmp_path):
    alone = prepare(corpus, tokenizer, tmp_path / "alone", on_bad_line="skip", settings=SETTINGS)
    shared = prepare_on_nodes(corpus, tokenizer, tmp_path / "nodes", 2, on_bad_line="skip", settings=SETTINGS)
    assert _contents(tmp_path / "nodes") == _contents(tmp_path / "alone")
    assert shared.index["skipped"] == alone.index["skipped"] and alone.index["skipped"]["bad lines"] == 5


def test_a_node_that_is_missing_is_told_and_what_is_done_is_not_done_again(corpus, tokenizer, tmp_path):
    out = tmp_path / "nodes"
    tokenizer.save(tmp_path / "tokenizer")
    work = Work(str(corpus), str(tmp_path / "tokenizer"), str(out), None, 0.05, "skip", SETTINGS)
    encode_share(work, 0, 2)
    with pytest.raises(DataError, match="run every node to its end first"):
        write_from_parts(work)
    done = part_file(out, 2)
    before = done.stat().st_mtime_ns
    done.with_name("000004.part").unlink()
    encode_share(work, 0, 2)
    assert done.stat().st_mtime_ns == before
    encode_share(work, 1, 2)
    broken = part_file(out, 3)
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="a damaged part"):
        write_from_parts(work)
    broken.write_bytes(whole)
    write_from_parts(work)
    prepare(corpus, tokenizer, tmp_path / "alone", on_bad_line="skip", settings=SETTINGS)
    assert _contents(out) == _contents(tmp_path / "alone")
