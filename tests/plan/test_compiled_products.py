"""Products that oneDNN compiles in a run in bfloat16, by its own log, beside those that the plan counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.plan.constants import KERNEL
from shoestring.plan.predict import predict
from shoestring.plan.shapes import EngineSpec, JobShape, Machine, Training
from tests.plan import counted

LIBRARIES = "matrix libraries, for each size of a product"
ROWS, LENGTH = 2, 200
SCRIPT = """
import sys, torch
from tests.plan import counted
from shoestring.kernels import allocator
from shoestring.plan.shapes import Training
from shoestring.train.resident import ResidentEngine
allocator.install()
lora, dora = sys.argv[1] != "full", sys.argv[1] == "dora"
config = counted.config(64, feed_forward={"width": 160})
training = Training(False, counted.RANK, dora=dora) if lora else Training()
parts = counted.batches(2, 2, 200, config.vocabulary)
print("FROM HERE", flush=True)
counted.counted(lambda: ResidentEngine(lambda: counted.model(config, training), torch.bfloat16), parts)
"""


@pytest.mark.parametrize("kind", ["full", "lora", "dora"])
def test_products_that_are_compiled_are_those_that_are_counted(kind):
    """Several linears that share their input have adapters that lie side by side, whose products are kinds of their
    own."""
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, cwd=root,
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    log = ran.stdout.partition("FROM HERE")[2].splitlines()
    compiled = [line for line in log if "create:cache_miss" in line and "bf16" in line]
    if not compiled:
        pytest.skip("oneDNN multiplies no bfloat16 on this processor")
    config = counted.config(64, feed_forward={"width": 160})
    training = Training() if kind == "full" else Training(False, counted.RANK, dora=kind == "dora")
    shape = JobShape(config, 2 * ROWS, LENGTH, training, compute="bfloat16", measured=False)
    predicted = predict(shape, EngineSpec("resident", ROWS), Machine(0, 1e9))
    expected = dict(predicted.beside)[LIBRARIES] / KERNEL
    assert expected == pytest.approx(len(compiled), abs=4), "\n".join(compiled)
