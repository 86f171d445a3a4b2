"""External vectors: the alignment by brute force, nothing of the future in them, and a store that lasts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from shoestring.data.batch import Batch
from shoestring.data.external import GROUP, SpanStore, SpanVectors
from shoestring.data.held_out import SequentialPass
from shoestring.data.loader import PackedLoader
from shoestring.data.prepare import prepare
from shoestring.data.shards import ShardFolder
from shoestring.data.tokenizer import Tokenizer
from shoestring.data.train_tokenizer import train_tokenizer

WORDS = "the cat sat on a mat while two dogs ran over every hill near our old house and back again".split()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 3, 300, 2)


def text_of(seed: int, words: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(WORDS[n] for n in random.integers(0, len(WORDS), words))


class Encoder:
    """A vector from a hash of the text: any changed character changes it."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        digests = [hashlib.sha256(text.encode()).digest()[:6] for text in texts]
        return np.array([list(digest) for digest in digests], np.float32)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.separator_id, *tokenizer.encode(text)]


@pytest.mark.parametrize("span", [1, 3, 8])
def test_token_n_gets_the_last_span_that_ended_before_it(tokenizer, span):
    ids = ids_of(tokenizer, text_of(0, 20))
    encoder = Encoder()
    source = SpanVectors(tokenizer, encoder, 6, span)
    for start, stop in [(0, len(ids)), (5, len(ids)), (span, span + 1), (0, 1), (len(ids) - 1, len(ids))]:
        ours = source.vectors(ids, start, stop)
        for n in range(start, stop):
            end = n // span * span
            expected = np.zeros(6) if end == 0 else Encoder()([tokenizer.decode(ids[end - span : end])])[0]
            assert (ours[n - start] == expected).all(), (n, start, stop)


def test_a_changed_text_changes_no_vector_before_the_change(tokenizer):
    source = SpanVectors(tokenizer, Encoder(), 6, 4)
    for seed in range(20):
        text = text_of(seed, 30)
        cut = len(text) * (seed + 1) // 22
        ids, other = ids_of(tokenizer, text), ids_of(tokenizer, text[:cut] + "Z" + text[cut + 1 :])
        same = next(n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b)
        ours, changed = source.vectors(ids, 0, len(ids)), source.vectors(other, 0, len(other))
        assert (ours[: same + 1] == changed[: same + 1]).all()
        after = slice(same + 4, min(len(ids), len(other)))
        assert (ours[after] != changed[after]).any() or not len(ours[after])


def test_tokens_made_one_by_one_get_the_same_vectors(tokenizer):
    ids = ids_of(tokenizer, text_of(1, 20))
    encoder = Encoder()
    source = SpanVectors(tokenizer, encoder, 6, 4)
    one_by_one = np.concatenate([source.vectors(ids[: n + 1], n, n + 1) for n in range(len(ids))])
    assert len(encoder.texts) == (len(ids) - 1) // 4  # each span once
    assert (one_by_one == source.vectors(ids, 0, len(ids))).all()


def text_shards(tokenizer: Tokenizer, folder: Path, words: list[int]) -> ShardFolder:
    (folder / "text").mkdir()
    for n, count in enumerate(words):
        (folder / "text" / f"{n}.txt").write_text(text_of(n, count))
    return prepare(folder / "text", tokenizer, folder / "shards", validation=0.3 if len(words) > 1 else 0)


def test_stored_vectors_are_the_same_and_computed_once(tokenizer, tmp_path):
    shards = text_shards(tokenizer, tmp_path, [10, 25, 5, 40])
    documents = [np.array([shards.separator_id, *d.tokens]) for d in shards.documents_of("train")]
    source = SpanVectors(tokenizer, Encoder(), 6, 2)
    stored = source.of_split(shards, "train", tmp_path / "kept")
    for number in [*range(len(documents)), 0]:
        ids = documents[number]
        for start, stop in [(3, 7), (0, len(ids)), (len(ids) - 1, len(ids))]:
            assert (stored(number, ids, start, stop) == source.vectors(ids, start, stop)).all()
    again = Encoder()
    reopened = SpanVectors(tokenizer, again, 6, 2).of_split(shards, "train", tmp_path / "kept")
    assert (reopened(1, documents[1], 0, 9) == source.vectors(documents[1], 0, 9)).all()
    assert again.texts == []


@pytest.mark.parametrize("changed", [{"split": "validation"}, {"span": 3}, {"fingerprint": "b"}], ids=str)
def test_vectors_of_another_split_span_or_encoder_are_kept_apart(tokenizer, tmp_path, changed):
    shards = text_shards(tokenizer, tmp_path, [10, 25, 5, 40])
    folders = []
    for settings in ({}, changed):
        source = SpanVectors(tokenizer, Encoder(), 6, settings.get("span", 2), settings.get("fingerprint", "a"))
        source.of_split(shards, settings.get("split", "train"), tmp_path / "kept")
        folders.append({path.name for path in (tmp_path / "kept").iterdir()})
    assert len(folders[0]) == 1 and len(folders[1]) == 2


def test_a_store_computes_whole_groups_whoever_asks(tmp_path):
    asked: list[tuple[int, int]] = []

    def compute(low: int, high: int) -> np.ndarray:
        asked.append((low, high))
        return np.ones((high - low, 3), np.float32)

    store = SpanStore(tmp_path, np.array([2 * GROUP + 2, 4 * GROUP + 6]), 2, 3)
    store.get(1, 3, 4, compute)
    store.get(1, GROUP - 1, GROUP + 2, compute)
    store.get(0, 0, GROUP + 1, compute)
    assert asked == [(0, GROUP), (GROUP, 2 * GROUP), (0, GROUP), (GROUP, GROUP + 1)]


def test_documents_without_a_whole_span_need_no_files(tokenizer, tmp_path):
    shards = text_shards(tokenizer, tmp_path, [2])
    vectors = SpanVectors(tokenizer, Encoder(), 6, 1000).of_split(shards, "train", tmp_path / "kept")
    assert not vectors(0, np.array([0, 1, 2]), 0, 3).any()
    assert not any(path.is_file() for path in (tmp_path / "kept").rglob("*"))


@pytest.mark.parametrize("separate", [True, False])
def test_batches_carry_the_vectors_of_their_tokens(tokenizer, tmp_path, separate):
    shards = text_shards(tokenizer, tmp_path, [10, 15, 20, 25, 30, 35])
    source = SpanVectors(tokenizer, Encoder(), 6, 3)

    def plain(_: int, ids: np.ndarray, start: int, stop: int) -> np.ndarray:
        return source.vectors(ids, start, stop)

    def check(batch: Batch, split: str) -> int:
        """Every row's vectors by brute force: find the text that its tokens are of."""
        assert batch.external_BTE is not None
        stream = [[shards.separator_id, *d.tokens.tolist()] for d in shards.documents_of(split)]
        checked = 0
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            starts = [t for t, token in enumerate(tokens) if token == shards.separator_id]
            for start, end in zip(starts, [*starts[1:], len(tokens)][: len(starts)], strict=True):
                found = [ids for ids in stream if ids[: end - start] == tokens[start:end]]
                if found:
                    expected = source.vectors(found[0], 0, end - start)
                    assert (batch.external_BTE[row, start:end].numpy() == expected).all()
                    checked += int(expected.any())
        return checked

    loader = PackedLoader(shards, "train", 16, 2, 0, separate_documents=separate, external=plain)
    assert sum(check(next(loader), "train") for _ in range(6)) > 3
    held_out = SequentialPass(shards, "validation", 16, 2, separate, external=plain)
    assert sum(check(batch, "validation") for batch in held_out) > 0


def test_a_row_that_begins_inside_a_document_knows_the_span_before_it(tokenizer, tmp_path):
    shards = text_shards(tokenizer, tmp_path, [40])
    source = SpanVectors(tokenizer, Encoder(), 6, 4)
    loader = PackedLoader(shards, "train", 8, 2, 0, external=lambda _, ids, i, j: source.vectors(ids, i, j))
    ids = [shards.separator_id, *next(shards.documents_of("train")).tokens.tolist()]
    found = 0
    for _ in range(loader.samples_per_epoch // 2):
        batch = next(loader)
        for row, tokens in enumerate(batch.tokens_BT.tolist()):
            if tokens == ids[8:16]:
                found += 1
                assert batch.external_BTE is not None and batch.positions_BT[row, 0] == 0
                assert (batch.external_BTE[row].numpy() == source.vectors(ids, 8, 16)).all()
                assert batch.external_BTE[row, 0].any()
    assert found == 1
