"""Damaged files of every kind end in an answer or in one sentence and exit 2: no traceback, no signal, within 2 seconds
of the processor and 500 MB each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case is a fork")


def faults(first: int, count: int, seed: int = 1) -> list[str]:
    command = [sys.executable, "-m", "tests.fuzz.server", str(seed), str(first), str(count)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    *reports, summary = run.stdout.splitlines()
    answered = json.loads(summary)["answered_and_refused"]
    if count >= 1000:  # damage matters, and not always; a damaged line of metrics is left out
        assert all(good and (bad or kind == "metrics") for kind, (good, bad) in answered.items()), answered
    return reports


def test_a_sample_of_damaged_files_ends_in_an_answer_or_a_sentence():
    assert faults(0, 42) == []  # two of each kind


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_damaged_files_end_in_an_answer_or_a_sentence(part):
    assert faults(2500 * part, 2500) == []
