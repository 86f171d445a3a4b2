"""Adapters that come and go while a model is used: attached once, then switched in no time.

What a scheduler holds was computed with the adapter of before: whoever switches makes a new one.
"""

from __future__ import annotations

from pathlib import Path

from shoestring.core.errors import ConfigError, ModelFileError
from shoestring.generate.language_model import LanguageModel
from shoestring.models.adapters import adapter_names, detach, switch
from shoestring.models.fingerprint import Fingerprint
from shoestring.models.peft_config import CONFIG, read_adapter_config
from shoestring.models.peft_folder import WEIGHTS, is_adapter, load_adapter
from shoestring.models.resolve import Say, find_model


class LiveAdapters:
    """active: the folder of the one at work, as it was named; None: the model alone."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.active: str | None = None
        self._digest = ""  # of what is active
        self._attached: dict[str, str] = {}  # the contents of a folder -> the adapter's name in the decoder

    def use(self, folder: str, say: Say | None = None) -> str | None:
        """Let the adapter in this folder, or the newest of a run, work; -> the model it says it was trained on.

        Raises ModelFileError for what is no adapter or does not fit, and then changes nothing.
        """
        self._check()
        found = find_model(folder, say=say)
        if not is_adapter(found):
            raise ModelFileError("this is a whole model and no adapter", str(found), f"shoestring chat {folder}")
        base = read_adapter_config(found).base
        digest = Fingerprint.of([path for path in (found / CONFIG, found / WEIGHTS) if path.is_file()]).digest
        if digest not in self._attached:
            name = f"live-{len(self._attached) + 1}"
            before = self._attached.get(self._digest) if self.active is not None else None
            try:
                load_adapter(self.model.decoder, found, name)
            except BaseException:
                detach(self.model.decoder, name)
                switch(self.model.decoder, before)
                raise
            self._attached[digest] = name
        switch(self.model.decoder, self._attached[digest])
        self.active, self._digest = folder, digest
        return base

    def off(self) -> None:
        """The model alone."""
        self._check()
        switch(self.model.decoder, None)
        self.active = None

    def _check(self) -> None:
        folder: Path | None = self.model.folder
        if folder is not None and is_adapter(folder) and not adapter_names(self.model.decoder):
            raise ConfigError(
                "this model has an adapter merged into it, which cannot be taken out again",
                hint="start with the base model, and then: /adapter FOLDER",
            )
