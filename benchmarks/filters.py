"""Filters and duplicates: how fast documents are judged, beside datatrove, datasketch and a Python set.

    python -m benchmarks.filters

The text is made up: words drawn by Zipf's law into sentences, lines and paragraphs, of the lengths that web pages
have, so that every rule has to be looked at. datatrove's filters are given the words, split once outside its time, so
what is compared is the rules; ours are timed with splitting too. Rounds take turns, medians count, in processor
seconds of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import finish, show
from shoestring.data.quality import filters
from shoestring.data.quality.config import NearDuplicateConfig, QualityConfig
from shoestring.data.quality.duplicates import Seen
from shoestring.data.quality.near_duplicates import bucket_keys
from shoestring.data.quality.review import examine
from shoestring.data.quality.words import plain_words, words_of

Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=1000)
    given = parser.parse_args()
    texts = corpus(given.documents)
    finish(rules(texts, given.rounds) | likeness(texts, given.rounds) | sets(given.rounds))


def corpus(count: int) -> list[str]:
    """About 3 kB each."""
    rng = np.random.default_rng(0)
    letters = np.array([*"etaoinshrdlucmfwypvbgk"])
    vocabulary = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 30_000)]
    vocabulary[:8] = ["the", "be", "to", "of", "and", "that", "have", "with"]
    texts, ranks = [], 1 / (np.arange(30_000) + 3.0)
    ends = ["", ",", ".", ".\n", ".\n\n"]
    for size in rng.lognormal(6, 0.8, count).astype(int) + 60:
        words = [vocabulary[rank] for rank in rng.choice(30_000, size, p=ranks / ranks.sum())]
        marks = rng.choice(ends, size, p=[0.85, 0.06, 0.05, 0.03, 0.01])
        texts.append(" ".join(word + mark for word, mark in zip(words, marks, strict=True)).replace("\n ", "\n") + ".")
    return texts


def rules(texts: list[str], rounds: int) -> dict[str, float]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

    words = [words_of(text) for text in texts]
    by_text = dict(zip(texts, words, strict=True))
    ours = {"gopher quality": filters.gopher_quality, "gopher repetition": filters.gopher_repetition,
            "fineweb": filters.fineweb}  # fmt: skip
    theirs: dict[str, Any] = {
        "gopher quality": (gopher_quality_filter, gopher_quality_filter.GopherQualityFilter()),
        "gopher repetition": (gopher_repetition_filter, gopher_repetition_filter.GopherRepetitionFilter()),
        "fineweb": (fineweb_quality_filter, fineweb_quality_filter.FineWebQualityFilter()),
    }
    documents = [Document(text=text, id="") for text in texts]
    works: dict[str, Work] = {"words": lambda: [words_of(text) for text in texts]}
    for name, rule in ours.items():
        module, judge = theirs[name]
        module.split_into_words = lambda text, language: by_text[text]
        works[name] = lambda rule=rule: [rule(text, own) for text, own in zip(texts, words, strict=True)]
        works[f"datatrove: {name}"] = lambda judge=judge: [judge.filter(one) for one in documents]
        verdicts = [verdict is True for verdict in works[f"datatrove: {name}"]()]
        assert verdicts == [reason is None for reason in works[name]()], name
    everything = QualityConfig(exact_duplicates=False, gopher_quality=True, gopher_repetition=True, fineweb=True)
    works["words and all three"] = lambda: [examine(text, everything) for text in texts]
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds = in_turn(works, rounds)
    kept = sum(examine(text, everything).fault is None for text in texts) / len(texts)
    rows = [[name, f"{size / seconds[name]:.1f}",
             f"{size / seconds[f'datatrove: {name}']:.1f}" if name in ours else ""]
            for name in ("words", *ours, "words and all three")]  # fmt: skip
    title = f"MB/s of {len(texts):,} documents, {size:.1f} MB, {kept:.0%} kept by all"
    show(title, ["", "Shoestring", "datatrove"], rows)
    figures = {f"{name.replace(' ', '_')}_ratio": seconds[f"datatrove: {name}"] / seconds[name] for name in ours}
    return figures | {"filters_mb_per_second": size / seconds["words and all three"]}


def likeness(texts: list[str], rounds: int) -> dict[str, float]:
    config = NearDuplicateConfig()
    works: dict[str, Work] = {"rensa, with keys": lambda: [bucket_keys(text, config) for text in texts]}
    try:
        from datasketch import MinHash
    except ImportError:  # no extra brings it
        pass
    else:
        works["datasketch"] = lambda: [
            MinHash.bulk([_grams(text)], num_perm=config.buckets * config.hashes) for text in texts
        ]
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds = in_turn(works, rounds)
    rows = [[name, f"{size / took:.1f}"] for name, took in seconds.items()]
    show("Signatures for near-duplicates", ["", "MB/s"], rows)
    return {"signatures_mb_per_second": size / seconds["rensa, with keys"]}


def _grams(text: str) -> list[bytes]:
    words = plain_words(text)
    return [" ".join(words[n : n + 5]).encode() for n in range(len(words) - 4)]


def sets(rounds: int, count: int = 1_000_000) -> dict[str, float]:
    """Of hashes, added one by one."""
    values = np.random.default_rng(0).integers(0, 2**64, count, np.uint64).tolist()

    def ours() -> Seen:
        seen = Seen()
        for value in values:
            seen.add(value)
        return seen

    def theirs() -> set[int]:
        seen: set[int] = set()
        for value in values:
            if value not in seen:
                seen.add(value + 0)  # a number of its own, as each hash is
        return seen

    seconds = in_turn({"Seen": ours, "set": theirs}, rounds)
    array = np.array(values, np.uint64)
    held = {"Seen": _held(lambda: Seen.load(array)), "set": _held(lambda: {value + 0 for value in values})}
    rows = [[name, f"{1e6 * seconds[name] / count:.2f}", f"{held[name] / count:.0f}"] for name in seconds]
    show(f"{count:,} hashes", ["", "µs each", "bytes each"], rows)
    return {"seen_microseconds": 1e6 * seconds["Seen"] / count, "seen_bytes": held["Seen"] / count}


def _held(make: Work) -> int:
    tracemalloc.start()
    made = make()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return held


def in_turn(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median processor seconds of each."""
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.process_time()
            work()
            took[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in took.items()}


if __name__ == "__main__":
    main()
