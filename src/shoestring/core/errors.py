"""Errors for the user: a sentence that says what is wrong, where, and what to do.

The command line prints the sentence and exits with `exit_code`; a traceback is a bug of ours.
Raise the subclass that names the kind of input at fault, never `ShoestringError` itself.
"""

from __future__ import annotations


class ShoestringError(Exception):
    """Base of all errors that a user can cause or mend.

    message: one sentence, lower case, without a full stop. where: "file:line" or "(command line)".
    hint: what to do about it; printed indented on the lines below.
    """

    exit_code = 2
    silent = False  # another process tells it for all

    def __init__(self, message: str, where: str | None = None, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.hint:
            text += "".join(f"\n  {line}" for line in self.hint.splitlines())
        return text


class ConfigError(ShoestringError):
    """A recipe, flag or combination of settings that cannot work."""


class DataError(ShoestringError):
    """Documents, shards or datasets that cannot be read."""


class ModelFileError(ShoestringError):
    """A model folder, safetensors or GGUF file that is missing, broken or of an unsupported kind."""


class TokenizerError(ShoestringError):
    """A tokenizer or chat template that is missing, broken or does not match."""


class BudgetError(ShoestringError):
    """A memory or time budget that cannot be kept."""


class RunError(ShoestringError):
    """A run folder that cannot be started, resumed or written."""


class NetworkError(ShoestringError):
    """A download that did not succeed."""
