"""The Hugging Face hub's client, kept from telling of every retry: whoever asked tells once, in a sentence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def quiet_hub(say: Callable[[str], None] | None = None) -> Iterator[None]:
    """While this lasts the client logs nothing below an error; its first retry is told to `say`, once.

    Who asked for its log (HF_HUB_VERBOSITY=info) gets all of it.
    """
    import huggingface_hub.utils.logging  # noqa: F401  it sets up its logger when it is imported

    logger = logging.getLogger("huggingface_hub")
    told = False

    def passes(record: logging.LogRecord) -> bool:
        nonlocal told
        if record.levelno < logging.ERROR and not told and say is not None and "Retrying" in record.getMessage():
            told = True
            say("the hub does not answer yet; trying again")
        return record.levelno >= logging.ERROR

    handlers = list(logger.handlers) if logger.getEffectiveLevel() >= logging.WARNING else []
    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)
