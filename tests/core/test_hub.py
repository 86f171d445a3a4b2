"""What the hub's client logs by itself while it retries is not what a person reads."""

import logging

import huggingface_hub
import pytest

from shoestring.core.errors import NetworkError
from shoestring.core.hub import quiet_hub
from shoestring.data.supervised.rows import ExampleSource
from shoestring.models.get import get

CLIENT = logging.getLogger("huggingface_hub.utils._http")


class Log(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def log():
    """What reaches the handlers of the client's logger."""
    handler, logger = Log(), logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def fail(*arguments, **options):
    for attempt in range(1, 6):
        CLIENT.warning("'[Errno 111] Connection refused' thrown while requesting GET https://hub/api")
        CLIENT.warning(f"Retrying in 8s [Retry {attempt}/5].")
    raise ConnectionError("nobody answers")


def test_retries_are_told_once_and_errors_still_logged(log):
    said = []
    with quiet_hub(said.append):
        CLIENT.warning("Retrying in 1s [Retry 1/5].")
        CLIENT.warning("Retrying in 2s [Retry 2/5].")
        CLIENT.error("broken")
    assert (said, log) == (["the hub does not answer yet; trying again"], ["broken"])
    CLIENT.warning("later")
    assert log == ["broken", "later"]


def test_a_model_that_cannot_be_fetched_is_one_line_of_waiting_and_one_sentence(log, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOESTRING_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    said = []
    with pytest.raises(NetworkError, match="could not be fetched from the hub: nobody answers"):
        get("hf:owner/name", refresh=True, say=said.append)
    assert log == [] and said == ["fetching owner/name from the hub", "the hub does not answer yet; trying again"]


def test_a_data_set_that_cannot_be_fetched_is_one_line_of_waiting_and_one_sentence(log, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    said = []
    with pytest.raises(NetworkError, match="could not be fetched from the hub: nobody answers"):
        ExampleSource("hf:owner/name", say=said.append)
    assert log == [] and said == ["fetching owner/name from the hub", "the hub does not answer yet; trying again"]
