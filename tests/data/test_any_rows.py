"""Every order of rows: left at any point and gone on with, it gives exactly the next batch, for any number of ranks."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.core.errors import DataError
from shoestring.data.loader import RowLoader
from shoestring.data.rows import best_fit, on_the_fly
from shoestring.data.rows.best_fit import BestFit
from shoestring.data.rows.concatenated import Concatenated
from shoestring.data.rows.mixture import Mixture
from shoestring.data.rows.on_the_fly import OnTheFly
from shoestring.data.stored import StoredDocuments
from tests.data.made import SEPARATOR, made_shards
from tests.data.test_loader import _rows, _same, _take

LENGTH = 16


class Words:
    """Files of texts, which are numbers with spaces between."""

    fingerprint = "words"

    def __init__(self, files):
        self.files, self.count, self.read = files, len(files), []

    def texts(self, number):
        self.read.append(number)
        return iter(self.files[number])


def encode(texts):
    return [np.array(text.split(), np.int64) for text in texts]


def some_files(first=1):
    random, files = np.random.default_rng(0), []
    for size in (9, 0, 30, 4, 1):
        files.append([])
        for length in random.integers(0, 50, size):
            files[-1].append(" ".join(map(str, range(first, first + length))))
            first += length
    return files


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    one, two = (
        StoredDocuments(made_shards(tmp_path_factory.mktemp("s"), [(n * 7) % 61 for n in range(size)], 9), "train")
        for size in (70, 25)
    )

    def made(kind, seed):
        match kind:
            case "concatenate":
                return Concatenated(one, LENGTH, seed)
            case "best_fit":
                return BestFit(one, LENGTH, seed)
            case "on the fly":
                return OnTheFly(Words(some_files()), encode, SEPARATOR, LENGTH, seed, "best_fit")
            case "on the fly, concatenated":
                return OnTheFly(Words(some_files()), encode, SEPARATOR, LENGTH, seed, "concatenate")
            case "mixture":
                parts = [made("concatenate", seed), BestFit(two, LENGTH, seed), made("on the fly", seed)]
                return Mixture(parts, [1, 0.3, 2])

    return made


KINDS = ["concatenate", "best_fit", "on the fly", "on the fly, concatenated", "mixture"]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(best_fit, "STRETCH", 64)
    monkeypatch.setattr(best_fit, "TOGETHER", 256)
    monkeypatch.setattr(best_fit, "_ROWS", 1)
    monkeypatch.setattr(on_the_fly, "TOGETHER", 200)
    monkeypatch.setattr(on_the_fly, "_AT_ONCE", 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 5), before=st.integers(0, 60), rows=st.integers(1, 3),
    prefetch=st.sampled_from([0, 2]), worlds=st.permutations([1, 2, 3]),
)  # fmt: skip
def test_restoring_at_any_point_gives_exactly_the_next_batch(kinds, kind, seed, before, rows, prefetch, worlds):
    world, other = worlds[:2]
    loaders = [RowLoader(kinds(kind, seed), rows, rank, world, prefetch=prefetch) for rank in range(world)]
    for loader in loaders:
        _take(loader, before // world)
    states = [json.loads(json.dumps(loader.state())) for loader in loaders]
    assert all(state == states[0] for state in states)
    alone = RowLoader(kinds(kind, seed), 1)
    _take(alone, before // world * world * rows)
    resumed = [RowLoader(kinds(kind, seed), rows, rank, other, prefetch=prefetch) for rank in range(other)]
    for loader in resumed:
        _take(loader, 1)
        loader.restore(states[0])
    for _ in range(3):
        parts = [_rows([next(loader)]) for loader in resumed]
        together = [row for same_row in zip(*parts, strict=True) for row in same_row]
        assert together == _rows(_take(alone, rows * other))
    for loader in (*loaders, *resumed):
        loader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_rows_and_another_others(kinds, kind):
    one, same, other = (RowLoader(kinds(kind, seed), 2) for seed in (1, 1, 2))
    pairs = list(zip(_take(one, 9), _take(same, 9), _take(other, 9), strict=True))
    assert all(_same(a, b) for a, b, _ in pairs) and not all(_same(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_places_that_are_none_and_other_data_are_refused(kinds, kind):
    loader = RowLoader(kinds(kind, 1), 2)
    state = loader.state()
    wrong = [None, 3, [], [0], [-1, 0, 0, 0], [0, 10**6, 0, 0], [[0]], {"a": 1}, [0, 0, 10**9], [0.5, 0]]
    for place in wrong:
        with pytest.raises(DataError, match="no place in its data"):
            loader.restore({**state, "place": place})
    for key in state.keys() - {"place"}:
        with pytest.raises(DataError, match=f"has {key} other"):
            loader.restore({**state, key: "other"})


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_an_epoch_on_the_fly_has_every_token_once(packing):
    words = Words(some_files())
    rows = OnTheFly(words, encode, SEPARATOR, LENGTH, 3, packing)
    for epoch in range(3):
        found, separators = [], 0
        place = rows.first()
        while place[0] < epoch:
            place = rows.after(place)
        while place[0] == epoch:
            tokens, labels = np.zeros((2, LENGTH), np.int64)
            used, _ = rows.read(place, tokens, labels, np.zeros(LENGTH, bool))
            found += [token for token in tokens[:used].tolist() if token]
            separators += int((tokens[:used] == SEPARATOR).sum())
            place = rows.after(place)
        assert sorted(found) == list(range(1, len(found) + 1)) and separators == 44
    assert max(np.bincount(words.read)) <= 9, "files are read on, not from their beginning for each window"


def test_a_source_without_text_is_refused():
    with pytest.raises(DataError, match="no text to train on"):
        OnTheFly(Words([[], []]), encode, SEPARATOR, LENGTH, 0, "best_fit").first()


def test_a_mixture_keeps_its_shares_at_every_point(kinds):
    parts = [kinds("concatenate", 1), kinds("best_fit", 1)]
    mixture = Mixture(parts, [3, 1])
    place = mixture.first()
    for n in range(1, 200):
        place = mixture.after(place)
        taken = [count for count, _ in place]
        assert sum(taken) == n and abs(taken[0] - 0.75 * n) <= 1
