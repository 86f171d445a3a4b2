"""A student whose weights give no number goes back to its last checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.train.resident import ResidentEngine
from tests.compression.distill.distilling import run


@pytest.mark.parametrize("adapter", [False, True])
def test_a_student_goes_back_to_its_checkpoint(
    adapter: bool, teacher: Path, student: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_backward = ResidentEngine.forward_backward

    def ruined_once(engine: ResidentEngine, microbatches: Any) -> Any:
        if engine.steps == 4:
            with torch.no_grad():
                for parameter in engine.parameters():
                    parameter.fill_(math.nan)
        return forward_backward(engine, microbatches)

    monkeypatch.setattr(ResidentEngine, "forward_backward", ruined_once)
    method = {"adapter.method": "lora"} if adapter else {}
    more = {"train.steps": 16, "train.checkpoint_every": 3, "train.evaluate_every": 20, **method}
    out = run(teacher, student, sums, tmp_path / "run", **more).out
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (back,) = (line for line in lines if line.get("event") == "rolled_back")
    assert (back["step"], back["to"]) == (14, 3)
    assert [line["step"] for line in lines if line.get("loss") is not None] == [1, 2, 3, 4, 15, 16]
