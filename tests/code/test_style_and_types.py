"""What `make lint` says. As tests, so that another process runs tests in the minute that the types take."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def check(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_hold():
    check("mypy")


def test_the_style_is_kept():
    check("ruff", "check", "src", "tests", "benchmarks")
