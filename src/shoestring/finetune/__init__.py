"""Fine-tuning on one's own examples. The room and the verb share a name, so the room can be called.

`shoestring.finetune(model, data, ...)` is `run.finetune(model, data, ...)` with an engine chosen for the memory given.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoestring.finetune.result import FinetuneResult


class _Room(types.ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> FinetuneResult:
        """See `shoestring.plan.finetune.finetune`."""
        import shoestring

        return shoestring.finetune_within(*arguments, **settings)


sys.modules[__name__].__class__ = _Room
