"""External vectors: the alignment by brute force, nothing of the future in them, and a store that lasts."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from shoestring.data.external import GROUP, SpanStore, SpanVectors, store_name
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


def test_a_store_gives_the_same_vectors_and_computes_each_once(tokenizer, tmp_path):
    documents = [np.array(ids_of(tokenizer, text_of(n, 5 + 9 * n))) for n in range(4)]
    lengths = np.array([len(ids) for ids in documents])
    encoder = Encoder()
    source = SpanVectors(tokenizer, encoder, 6, 2)
    stored = source.stored(SpanStore(tmp_path, lengths, 2, 6))
    for number in (2, 0, 3, 1, 2):
        ids = documents[number]
        for start, stop in [(3, 7), (0, len(ids)), (len(ids) - 1, len(ids))]:
            assert (stored(number, ids, start, stop) == source.vectors(ids, start, stop)).all()
    again = Encoder()
    reopened = SpanVectors(tokenizer, again, 6, 2).stored(SpanStore(tmp_path, lengths, 2, 6))
    assert (reopened(2, documents[2], 0, lengths[2]) == source.vectors(documents[2], 0, lengths[2])).all()
    assert again.texts == []


def test_a_store_computes_whole_groups_whoever_asks(tmp_path):
    asked: list[tuple[int, int]] = []

    def compute(low: int, high: int) -> np.ndarray:
        asked.append((low, high))
        return np.ones((high - low, 3), np.float32)

    store = SpanStore(tmp_path, np.array([10, 4 * GROUP + 6]), 2, 3)
    store.get(1, 3, 4, compute)
    store.get(1, GROUP - 1, GROUP + 2, compute)
    store.get(0, 0, 5, compute)
    assert asked == [(0, GROUP), (GROUP, 2 * GROUP), (0, 5)]


def test_documents_without_a_whole_span_need_no_files(tokenizer, tmp_path):
    store = SpanStore(tmp_path, np.array([3, 2]), 8, 6)
    source = SpanVectors(tokenizer, Encoder(), 6, 8)
    assert not source.stored(store)(0, np.array([0, 1, 2]), 0, 3).any()


def test_stores_of_other_text_encoders_or_spans_have_other_names():
    names = {store_name(*key) for key in [("a", "train", "e", 2), ("b", "train", "e", 2), ("a", "train", "f", 2)]}
    names |= {store_name("a", "validation", "e", 2), store_name("a", "train", "e", 3)}
    assert len(names) == 5
