"""Rows by best fit: no token is lost or repeated, no document that fits is cut, little is padded."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.core.errors import DataError
from shoestring.data.config import DataConfig
from shoestring.data.loader import RowLoader
from shoestring.data.rows import best_fit
from shoestring.data.rows.best_fit import BestFit
from shoestring.data.stored import StoredDocuments
from shoestring.models.builder import build
from shoestring.models.config import ModelConfig
from shoestring.pretraining.dataset import open_corpus
from tests.data.made import SEPARATOR, made_shards


def epoch_of(rows, number=0):
    """(tokens, labels, starts) of every row of an epoch, without padding."""
    place, found = rows.first(), []
    while place[0] < number:
        place = rows.after(place)
    while place[0] == number:
        tokens, labels = np.zeros((2, rows.length), np.int64)
        starts = np.zeros(rows.length, bool)
        used, _ = rows.read(place, tokens, labels, starts)
        assert 0 < used <= rows.length and not tokens[used:].any() and not starts[used:].any()
        found.append((tokens[:used], labels[:used], starts[:used]))
        place = rows.after(place)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=60), length=st.integers(2, 40), seed=st.integers(0, 9),
    stretch=st.sampled_from([8, 64]), together=st.sampled_from([64, 512]), compress=st.sampled_from([0, 3]),
)  # fmt: skip
def test_every_token_once_and_no_document_cut_that_fits(
    tmp_path_factory, monkeypatch, lengths, length, seed, stretch, together, compress
):
    monkeypatch.setattr(best_fit, "STRETCH", stretch)
    monkeypatch.setattr(best_fit, "TOGETHER", together)
    monkeypatch.setattr(best_fit, "_ROWS", 1)
    shards = made_shards(tmp_path_factory.mktemp("s"), lengths, 7, compress=compress)
    rows = BestFit(StoredDocuments(shards, "train"), length, seed)
    ends = np.cumsum(lengths)
    document = {int(token): n for n, end in enumerate(ends) for token in range(end - lengths[n] + 1, end + 1)}
    for epoch in range(2):
        inputs, learned = [], []
        for tokens, labels, starts in epoch_of(rows, epoch):
            begins = np.flatnonzero(starts)
            for low, high in zip(begins, [*begins[1:], len(tokens)], strict=True):
                piece, following = tokens[low:high], labels[low:high]
                assert np.array_equal(piece[1:], following[:-1]) and SEPARATOR not in piece[1:]
                number = document.get(int(piece[-1]))
                whole = 1 if number is None else 1 + lengths[number]
                assert len(piece) == whole or whole > length, "a document that fits is whole"
                last = number is None or piece[-1] == ends[number]
                assert following[-1] == (SEPARATOR if last else piece[-1] + 1)
            inputs += tokens.tolist()
            learned += labels.tolist()
        assert sorted(inputs) == sorted(learned) == [SEPARATOR] * len(lengths) + list(range(1, int(ends[-1]) + 1))


def test_stdlib_wastes_under_two_hundredths_and_says_so():
    corpus = open_corpus(DataConfig(packing="best_fit"))
    rows = corpus.rows(1024, 1)
    used = [len(tokens) for tokens, _, _ in epoch_of(rows)]
    share = 1 - sum(used) / (1024 * len(used))
    assert share < 0.02 and sum(used) == corpus.token_count("train")
    assert abs(rows.padding() - share) < 0.01


def test_packed_rows_give_the_logits_of_separate_documents(tmp_path):
    shards = made_shards(tmp_path, [5, 9, 3, 17, 30, 2, 8])
    rows = BestFit(StoredDocuments(shards, "train"), 24, 1)
    batch = next(RowLoader(rows, 3))
    config = ModelConfig.model_validate({
        "vocabulary": 128, "width": 16, "layers": 2, "context": 64,
        "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1, "head_width": 8},
        "feed_forward": {"kind": "swiglu", "width": 32},
    })  # fmt: skip
    decoder = build(config, seed=1).eval()
    with torch.no_grad():
        packed = decoder.head(decoder(batch.tokens_BT, batch.positions_BT, batch.segments_BT)[0])
        for row in range(3):
            for segment in range(int(batch.segments_BT[row].max()) + 1):
                here = batch.segments_BT[row] == segment
                alone = decoder.head(decoder(batch.tokens_BT[row, here].unsqueeze(0))[0])
                torch.testing.assert_close(packed[row, here], alone[0])


def test_a_split_without_documents_is_refused(tmp_path):
    with pytest.raises(DataError, match="no documents in validation"):
        BestFit(StoredDocuments(made_shards(tmp_path, [5]), "validation"), 8, 0)
