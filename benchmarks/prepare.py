"""Preparing and loading text: speed beside the tokenizer alone, memory as the corpus grows, waiting, and starting up.

    python -m benchmarks.prepare [--quick]

speed_ratio: bytes of text a second of `prepare` (reading JSONL, tokenizing, leaving out duplicates, writing shards)
over those of `tokenizers`' own `encode_batch_fast` on the same texts and cores, in processes that take turns.
memory_growth: how much more a corpus 20 times as large takes at its peak. wait_share: of a step of the quickstart
model, spent waiting for the loader. startup_seconds, startup_mb: to open a corpus of ten million documents, go on in
the middle of it and have the first batch, with either packing, the worse of both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from benchmarks.measure import alternate, finish, median, run_worker, show

DOCUMENTS = 10_000_000
MEGABYTES = 48  # that starting up counts for little
TIMES = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller corpus, a million documents, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--packing", default="concatenate", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments)))
        return
    megabytes, documents, rounds = (
        (4, DOCUMENTS // 10, 1) if arguments.quick else (MEGABYTES, DOCUMENTS, arguments.rounds)
    )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = _write_corpus(folder / "small", megabytes, 1)
        figures |= _speed(folder / "small", size, rounds)
        _write_corpus(folder / "large", megabytes, TIMES)
        figures |= _growth(folder, rounds)
        figures |= _startup(folder / "many", documents)
    figures |= run_worker("benchmarks.prepare", "--worker", "wait")
    finish(figures)


def _speed(folder: Path, size: int, rounds: int) -> dict[str, float]:
    workers = [["--worker", who, "--folder", str(folder)] for who in ("prepare", "encode")]
    ours, peer = alternate("benchmarks.prepare", workers, rounds)
    rates = [size / 1e6 / median(found, "seconds") for found in (ours, peer)]
    rows = [["shoestring prepare", f"{rates[0]:.2f}"], ["tokenizers.encode_batch_fast", f"{rates[1]:.2f}"]]
    show(f"{size / 1e6:.0f} MB of text, all cores", ["", "MB/s"], rows)
    return {"speed_ratio": rates[0] / rates[1], "mb_per_second": rates[0], "peer_mb_per_second": rates[1]}


def _growth(folder: Path, rounds: int) -> dict[str, float]:
    """Peaks; that of the small corpus is the median of several, as it ends before all threads were at their most."""

    def peak(name: str) -> float:
        return run_worker("benchmarks.prepare", "--worker", "prepare", "--folder", str(folder / name))["peak"]

    small = statistics.median(peak("small") for _ in range(rounds))
    return {"memory_growth": peak("large") / small - 1, "prepare_mb": small / 1e6}


def _startup(folder: Path, documents: int) -> dict[str, float]:
    _write_shards(folder, documents)
    found = [
        run_worker("benchmarks.prepare", "--worker", "start", "--folder", str(folder), "--packing", packing)
        for packing in ("concatenate", "best_fit")
    ]
    worst = {key: max(one[key] for one in found) for key in ("startup_seconds", "startup_mb")}
    return {**worst, "documents": documents}


def _write_corpus(folder: Path, megabytes: int, times: int) -> int:
    """JSONL files of the standard library's text, each document with a line of its own before it; -> bytes of text."""
    from shoestring.data.sources import Source

    folder.mkdir()
    texts = [document.text for document in Source("stdlib").documents()]
    total, number = 0, 0
    for part in range(times):
        with open(folder / f"{part:02d}.jsonl", "w", encoding="utf-8") as file:
            written = 0
            while written < megabytes * 10**6:
                text = f"# {number}\n{texts[number % len(texts)]}"
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                number += 1
        total += written
    return total


def _write_shards(folder: Path, documents: int, each: int = 20) -> None:
    """Training documents of `each` tokens, separators included, of no meaning; a few are held out."""
    import numpy as np

    from shoestring.data.shards import FORMAT, index_checksum
    from shoestring.data.token_file import BLOCK
    from shoestring.data.train_tokenizer import train_tokenizer

    folder.mkdir()
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, 270)
    tokenizer.save(folder / "tokenizer")
    shards, most = [], 2_000_000
    parts = [("train", min(most, documents - n)) for n in range(0, documents, most)] + [("validation", 10_000)]
    for number, (split, count) in enumerate(parts):
        ids = np.random.default_rng(number).integers(1, 270, count * each).astype("<u2")
        ids[::each] = tokenizer.separator_id
        begins = np.stack([np.arange(count + 1) * each, np.arange(count + 1) * 60]).astype("<i8")
        name = f"{split}-{number:05d}"
        sums = [
            zlib.crc32(values[at : at + BLOCK].tobytes())
            for values in (ids, begins.reshape(-1))
            for at in range(0, len(values), BLOCK)
        ]
        contents = (ids.tobytes(), begins.tobytes(), np.array(sums, "<u4").tobytes())
        for suffix, content in zip(("bin", "offsets", "blocks"), contents, strict=True):
            (folder / f"{name}.{suffix}").write_bytes(content)
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        shards.append({"name": name, "split": split, "tokens": len(ids), "documents": count, "bytes": 60 * count,
                       "stored": 2 * len(ids), "sha256": digests[0], "offsets_sha256": digests[1],
                       "blocks_sha256": digests[2]})  # fmt: skip
    index = {"format": FORMAT, "tokenizer": tokenizer.fingerprint(), "vocabulary": tokenizer.vocabulary_size,
             "separator": tokenizer.separator_id, "dtype": "uint16", "compression": None, "inputs": {}, "skipped": {},
             "shards": shards}  # fmt: skip
    (folder / "index.json").write_text(json.dumps({**index, "sha256": index_checksum(index)}))


# --- in processes of their own ---------------------------------------------------------------------------------------


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    from shoestring.core.machine import peak_rss_bytes
    from shoestring.data.prepare import prepare

    tokenizer = _tokenizer()
    with tempfile.TemporaryDirectory() as out:
        before = time.perf_counter()
        prepare(arguments.folder, tokenizer, Path(out) / "shards")
        return {"seconds": time.perf_counter() - before, "peak": peak_rss_bytes()}


def _encode(arguments: argparse.Namespace) -> dict[str, Any]:
    texts = [json.loads(line)["text"] for file in sorted(arguments.folder.iterdir()) for line in open(file)]
    backend = _tokenizer().backend
    before = time.perf_counter()
    for first in range(0, len(texts), 1000):
        backend.encode_batch_fast(texts[first : first + 1000], add_special_tokens=False)
    return {"seconds": time.perf_counter() - before}


def _tokenizer() -> Any:
    """SmolLM2's, with 49,152 ids."""
    from shoestring.data.tokenizer import Tokenizer
    from shoestring.models.resolve import find_model

    return Tokenizer.load(find_model("smollm2-135m"))


def _start(arguments: argparse.Namespace) -> dict[str, Any]:
    from shoestring.core.machine import rss_bytes
    from shoestring.data.config import DataConfig
    from shoestring.data.loader import RowLoader
    from shoestring.pretraining.dataset import open_corpus

    config = DataConfig(source=str(arguments.folder), packing=arguments.packing)
    before, held = time.perf_counter(), rss_bytes()
    corpus = open_corpus(config)
    loader = RowLoader(corpus.rows(1024, 1), 8, prefetch=2)
    state = loader.state()
    middle = [90_000, 0] if arguments.packing == "concatenate" else [0, 3, 5]
    loader.restore({**state, "place": middle})
    held_out = corpus.held_out(1024, 8, True, 65_536, 0, 1)
    next(loader), next(iter(held_out))
    return {"startup_seconds": time.perf_counter() - before, "startup_mb": (rss_bytes() - held) / 1e6}


def _wait(arguments: argparse.Namespace) -> dict[str, Any]:
    """A hundred steps of the quickstart model, as a run makes them."""
    from shoestring.data.loader import RowLoader
    from shoestring.kernels import allocator
    from shoestring.models.builder import build
    from shoestring.pretraining.config import load_pretrain_recipe
    from shoestring.pretraining.dataset import open_corpus
    from shoestring.train.objective import next_token
    from shoestring.train.resident import ResidentEngine

    allocator.install()
    recipe = load_pretrain_recipe("quickstart")
    engine = ResidentEngine(lambda: build(recipe.model, seed=1))
    engine.load()
    engine.begin(next_token, recipe.optimizer)
    rows = open_corpus(recipe.data).rows(recipe.train.sequence_length, recipe.seed)
    loader = RowLoader(rows, recipe.train.rows, prefetch=recipe.data.prefetch)
    waits, steps = [], []
    for _ in range(40):
        before = time.perf_counter()
        batch = next(loader)
        waits.append(time.perf_counter() - before)
        engine.forward_backward([batch])
        engine.optimizer_step(1.0, 1.0)
        steps.append(time.perf_counter() - before)
    loader.close()
    return {"wait_share": statistics.mean(waits[5:]) / statistics.mean(steps[5:])}


WORKERS = {"prepare": _prepare, "encode": _encode, "start": _start, "wait": _wait}


if __name__ == "__main__":
    main()
