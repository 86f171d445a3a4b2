"""Surroundings of every test: one thread (tests run side by side), a cache outside the home, no colours, and one
library for matrices.

The cache lasts between runs, so that what tests fetch is fetched once; a run from nothing works as well.
"""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell does so for what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
_cache = Path(tempfile.gettempdir()) / f"shoestring-tests-{getpass.getuser()}"
os.environ.setdefault("SHOESTRING_CACHE", str(_cache))
# Which library multiplies decides the last bits, and a measurement would be made in whichever test comes first.
os.environ.setdefault("SHOESTRING_MATMUL", "mkl")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests start interpreters of their own, which must find this source too.
_source = str(Path(__file__).parents[1] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join([_source, *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)


@pytest.fixture(scope="session", autouse=True)
def _float32_where_nothing_is_asked() -> None:
    """On every processor: what is promised bit for bit, or compared with float32, is of one format."""
    from shoestring.train import precision

    precision.GAIN = float("inf")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that chats."""
    from tests.finetuning import tiny

    return tiny.chat_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen sums to teach it."""
    from tests.finetuning import tiny

    return tiny.sums(tmp_path_factory.mktemp("data") / "sums.jsonl")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the web page need a browser; where there is none they are left out, and the summary says why."""
    from tests.serve import browser

    marked = [item for item in items if item.get_closest_marker("browser")]
    if marked and browser.why_not() is not None:
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from tests.serve import browser

    if (reason := browser.why_not()) is not None:
        terminalreporter.write_line(f"tests of the web page in a browser are left out: {reason}")
