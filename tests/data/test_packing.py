"""Packing, the stream of batches and its resume, against brute force and the rows' own examples."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from shoestring.core.errors import DataError
from shoestring.data.batch import IGNORED
from shoestring.data.supervised.batches import (
    SupervisedPass,
    SupervisedStream,
    padded_length,
    padded_shares,
    row_sizes,
    to_batch,
)
from shoestring.data.supervised.packing import best_fit_decreasing
from shoestring.finetuning.examples import prepare_dataset
from shoestring.train.objective import next_token
from shoestring.train.resident import forward_loss
from tests.data import families
from tests.generate.tiny import tiny_decoder

LAYOUTS = ["packed", "padded", "flat"]


def random_rows(count, seed=1):
    rng = random.Random(seed)
    for n in range(count):
        question = "".join(rng.choices("abc ", k=rng.randint(1, 60)))
        yield {"prompt": f"{n} {question}", "completion": "x" * rng.randint(1, 20)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in random_rows(101)))
    return prepare_dataset(file, families.base(), 100, validation=0.2)


def stream(dataset, **settings):
    return SupervisedStream(dataset, **{"sequence_length": 128, "rows": 2, "group": 8, "seed": 3, **settings})


def same(a, b):
    names = ("tokens_BT", "labels_BT", "positions_BT", "segments_BT")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def parts(batch):
    """(inputs, labels) of every example in a batch, by its segments."""
    found = []
    for tokens, labels, positions, segments in zip(
        batch.tokens_BT, batch.labels_BT, batch.positions_BT, batch.segments_BT, strict=True
    ):
        for segment in range(int(segments.max()) + 1):
            own = segments == segment
            assert positions[own].tolist() == list(range(int(own.sum())))
            found.append((tokens[own].tolist(), labels[own].tolist()))
        assert (labels[segments < 0] == IGNORED).all()
    return found


def expected(dataset, index):
    ids, mask = dataset.example(index)
    labels = [int(i) if m else IGNORED for i, m in zip(ids[1:], mask[1:], strict=True)]
    n = max(k for k, label in enumerate(labels) if label != IGNORED) + 1
    return ids[:n].tolist(), labels[:n]


def test_packing_fills_rows_without_breaking_an_example():
    lengths = np.array(random.Random(0).choices(range(1, 65), k=500))
    rows = best_fit_decreasing(lengths, 64, np.arange(500))
    assert sorted(itertools.chain(*rows)) == list(range(500))
    assert max(lengths[row].sum() for row in rows) <= 64
    assert len(rows) <= 1.04 * np.ceil(lengths.sum() / 64)


@pytest.mark.parametrize("seed", range(20))
def test_packing_needs_at_most_eleven_ninths_of_the_least_rows(seed):
    lengths = np.array(random.Random(seed).choices(range(1, 13), k=7))

    def fits(count):
        return any(
            all(sum(lengths[n] for n in range(7) if places[n] == row) <= 12 for row in range(count))
            for places in itertools.product(range(count), repeat=7)
        )

    least = next(count for count in range(1, 8) if fits(count))
    assert len(best_fit_decreasing(lengths, 12, np.arange(7))) <= 11 / 9 * least + 1


def test_the_number_of_rows_does_not_depend_on_the_order():
    lengths = np.array(random.Random(0).choices(range(1, 30), k=200))
    packed = [best_fit_decreasing(lengths, 64, np.random.default_rng(n).permutation(200)) for n in range(5)]
    shapes = [sorted(sorted(lengths[row].tolist()) for row in rows) for rows in packed]
    assert shapes.count(shapes[0]) == 5 and packed[0] != packed[1]


@pytest.mark.parametrize("layout", [*LAYOUTS, "grouped"])
def test_an_epoch_holds_each_training_example_once_whole_and_apart(dataset, layout):
    batches = stream(dataset, layout=layout, rows=1)
    found = [part for _ in range(batches.samples_per_epoch) for part in parts(next(batches))]
    assert sorted(found) == sorted(expected(dataset, index) for index in dataset.indices("train"))
    assert batches.epoch == 1.0


@pytest.mark.parametrize("layout", [*LAYOUTS, "grouped"])
def test_a_pass_holds_each_validation_example_once(dataset, layout):
    text = SupervisedPass(dataset, "validation", 128, rows=3, layout=layout)
    found = [part for batch in text for part in parts(batch)]
    assert sorted(found) == sorted(expected(dataset, index) for index in dataset.indices("validation"))
    assert text.tokens == sum(int((b.labels_BT != IGNORED).sum()) for b in text)
    answers = sum(label != IGNORED and label < 256 for _, labels in found for label in labels)
    assert text.bytes == answers and text.documents == len(dataset.indices("validation"))
    ranks = [
        part for rank in range(2) for b in SupervisedPass(dataset, rows=3, rank=rank, world=2) for part in parts(b)
    ]
    assert sorted(ranks) == sorted(found)


@pytest.mark.parametrize("layout", [*LAYOUTS, "grouped"])
@pytest.mark.parametrize("taken", [0, 1, 7, 60])
def test_a_restored_stream_goes_on_with_exactly_the_next_batch(dataset, layout, taken):
    first = stream(dataset, layout=layout)
    for _ in range(taken):
        next(first)
    second = stream(dataset, layout=layout)
    next(second)
    second.restore(json.loads(json.dumps(first.state())))
    assert all(same(next(first), next(second)) for _ in range(30))


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_ranks_and_microbatches_share_one_order(dataset, layout):
    whole = stream(dataset, layout=layout, rows=8)
    ranks = [stream(dataset, layout=layout, rows=2, rank=rank, world=2) for rank in range(2)]
    for _ in range(5):
        wanted = parts(next(whole))
        found = [part for _ in range(2) for rank in ranks for part in parts(next(rank))]
        assert sorted(found) == sorted(wanted)
    assert {json.dumps(s.state()) for s in [whole, *ranks]} == {json.dumps(whole.state())}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_largest_batch_comes_first(dataset, layout):
    batches = stream(dataset, layout=layout, rows=8)
    sizes = [next(batches).tokens_BT.numel() for _ in range(batches.samples_per_epoch // 8)]
    assert sizes[0] == max(sizes)
    longest = int(dataset.lengths[dataset.indices("train")].max())
    first = next(stream(dataset, layout=layout, rows=8))
    if layout != "packed":
        assert max(len(tokens) for tokens, _ in parts(first)) == longest


def test_grouped_batches_fill_a_budget_of_tokens_with_like_lengths_the_largest_first(dataset):
    batches = stream(dataset, layout="grouped", rows=3)
    budget, lengths = 3 * padded_length(128), dataset.lengths
    found = [next(batches) for _ in range(batches.samples_per_epoch)]
    sizes = [batch.tokens_BT.numel() for batch in found]
    assert max(sizes) == sizes[0] <= budget and len({len(batch.tokens_BT) for batch in found}) > 2
    used = sum(int((batch.segments_BT >= 0).sum()) for batch in found)
    assert used / sum(sizes) > 0.8 and used == lengths[dataset.indices("train")].sum()
    assert sorted(sizes)[3] > 0.6 * budget, "but for a few, they are full"
    ranks = [stream(dataset, layout="grouped", rows=3, rank=rank, world=2) for rank in range(2)]
    shared = [next(ranks[n % 2]) for n in range(len(found))]
    assert all(same(one, other) for one, other in zip(found, shared, strict=True))


def test_epochs_and_seeds_differ_and_repeat(dataset):
    def epochs(seed, **settings):
        batches = stream(dataset, layout="padded", rows=1, seed=seed, **settings)
        return [[tuple(parts(next(batches))[0][0]) for _ in range(batches.samples_per_epoch)] for _ in range(2)]

    first, second = epochs(3)
    assert first != second and sorted(first) == sorted(second)
    assert epochs(3) == [first, second] and epochs(4)[0] != first


def test_padded_batches_of_like_lengths_waste_little(dataset):
    batches = stream(dataset, layout="padded", rows=8, longest_first=False)
    taken = [next(batches) for _ in range(batches.samples_per_epoch // 8)]
    used = sum(int((batch.segments_BT >= 0).sum()) for batch in taken)
    assert used / sum(batch.tokens_BT.numel() for batch in taken) > 0.8
    assert all(batch.tokens_BT.shape[1] % 16 == 0 for batch in taken)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_lengths_of_rows_are_counted_before_they_are_made(layout, dataset):
    batches = stream(dataset, layout=layout, rows=1)
    widths = [next(batches).tokens_BT.shape[1] for _ in range(batches.samples_per_epoch)]
    met = set(widths)
    sizes = row_sizes(dataset, layout, batches.state()["sequence_length"])
    assert {padded_length(tokens) for tokens, _ in sizes} == met and len(met) > 1
    assert any(examples > 1 for _, examples in sizes) == (layout == "packed")
    shares = padded_shares(sizes)
    assert sum(shares) == pytest.approx(1) and len(shares) == len(met)
    if layout == "padded":
        assert shares[-1] == pytest.approx(widths.count(max(met)) / len(widths))


def test_a_stream_of_other_data_or_settings_is_not_resumed(dataset):
    state = stream(dataset).state()
    for other in ({"seed": 4}, {"layout": "padded"}, {"sequence_length": 256}, {"group": 4}):
        with pytest.raises(DataError, match=f"the stream to resume has {next(iter(other))}"):
            stream(dataset, **other).restore(state)
    with pytest.raises(DataError, match="has data"):
        stream(dataset).restore({**state, "data": "another"})


def test_an_empty_split_is_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    only = prepare_dataset(file, families.base(), 100)
    assert (only.counts.train, only.counts.validation) == (1, 0)
    with pytest.raises(DataError, match="the validation split has no examples"):
        SupervisedStream(only, split="validation")


def test_equal_questions_stay_on_one_side_and_few_examples_still_hold_one_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"question {n % 10}", "completion": f"answer {n}"} for n in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = prepare_dataset(file, families.base(), 100, validation=0.3)
    sides = {}
    for n in range(100):
        sides.setdefault(n % 10, set()).add(bool(dataset.held_out[n]))
    assert all(len(side) == 1 for side in sides.values()) and 0 < dataset.counts.validation < 100
    few = prepare_dataset(file, families.base(), 100, validation=0.001)
    assert few.counts.validation == 10


def test_a_file_of_its_own_can_be_held_out(tmp_path):
    for name, count in (("train", 5), ("held", 3)):
        rows = [{"prompt": f"{name} {n}", "completion": "x"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = str(tmp_path / "held.jsonl")
    dataset = prepare_dataset(tmp_path / "train.jsonl", families.base(), 100, validation_source=held)
    assert dataset.held_out.tolist() == [False] * 5 + [True] * 3


def test_a_batch_gives_the_loss_of_its_examples_alone(dataset):
    """Two examples in a row, through a tiny decoder, give the sum of their own losses."""
    model = tiny_decoder(context=128, vocabulary=300).double()
    with torch.no_grad():
        packed, _ = forward_loss(model, next_token, to_batch(dataset, [[0, 1], [2]]))
        alone = [forward_loss(model, next_token, to_batch(dataset, [[n]]))[0] for n in range(3)]
    assert packed.count == sum(loss.count for loss in alone)
    assert float(packed.sum) == pytest.approx(sum(float(loss.sum) for loss in alone), rel=1e-6)
