"""Every way to write texts leaves a receipt in this machine's log: what was predicted, and what it took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring.cli.main import main
from shoestring.models.folder import save_model
from shoestring.plan import receipt
from tests.generate.tiny import byte_tokenizer, tiny_decoder


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(receipt, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "receipts.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    save_model(tiny_decoder(context=100), tmp_path / "model", byte_tokenizer())
    return str(tmp_path / "model")


def kept(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_one_prompt_several_and_a_file_of_them(folder: str, tmp_path: Path, log: Path) -> None:
    more = ("--max-tokens", "5")
    rows, out = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"number {n}"}) + "\n" for n in range(40)))
    for number, words in enumerate(
        (
            ("--prompt", "one"), ("--prompt", "one", "--prompt", "two"), ("--file", str(rows), "--out", str(out)),
            ("--prompt", "one", "--memory", "2GB"),
        ), 1,
    ):  # fmt: skip
        assert main(["generate", folder, *words, *more]) == 0
        assert len(kept(log)) == number
    assert all(one["job"] == "generate" and one["engine"] == "resident" for one in kept(log))
    assert all(one["unit"] == "use" and one["predicted_seconds"] > 0 < one["measured_seconds"] for one in kept(log))
    of_file = kept(log)[2]
    (whole,) = [item for item in of_file["items"] if item[0] == "all of it"]
    assert whole[2] == pytest.approx(40 / 16 * of_file["predicted_seconds"])  # sixteen at once
    told = [any(item[1] == "bytes" for item in one["items"]) for one in kept(log)]
    assert told == [False, False, False, True]  # memory, where it was promised

    assert main(["generate", folder, "--file", str(rows), "--out", str(out), *more]) == 0
    assert len(kept(log)) == 4  # nothing was left to be written
    beams = ("--num-beams", "2", "--temperature", "0", "--out", str(tmp_path / "beams.jsonl"))
    assert main(["generate", folder, "--file", str(rows), *beams, *more]) == 0
    assert len(kept(log)) == 4
