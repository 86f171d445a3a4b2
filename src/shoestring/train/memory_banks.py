"""What a model's memory bank holds from step to step: a bank for each microbatch's rows, or one persistent bank.

Rows that continue documents meet their bank again in the next step. The banks are part of the trainer's state:
memory.safetensors in a checkpoint, so a resumed run finds what an uninterrupted one would.
"""

from __future__ import annotations

from pathlib import Path

from shoestring.core.errors import ConfigError, RunError
from shoestring.models.decoder import Decoder
from shoestring.models.weights import TensorFile, save_file
from shoestring.nn.memory.bank import MemoryBank

_FILE = "memory.safetensors"


class MemoryBanks:
    """banks: one for each microbatch of a step, or a single one for all."""

    def __init__(self, banks: list[MemoryBank]):
        self.banks = banks

    @classmethod
    def of(
        cls, model: Decoder, continued: bool, rows: int, microbatches: int, out: Path, world: int = 1
    ) -> MemoryBanks | None:
        """The empty banks of a run; None when no batch has anything to remember of another.

        continued: documents go on from step to step. rows: of a microbatch. out: the run's folder, for banks in files.
        Raises ConfigError for what cannot be remembered.
        """
        config = model.config
        if continued and config.has_learned_positions:
            raise ConfigError(
                "data.continue_documents gives positions beyond model.context, and learned positions end there",
                hint="use model.position kind rope",
            )
        memory = config.memory
        if memory is None or (memory.scope == "document" and not continued):
            return None
        if world > 1:
            raise ConfigError("a memory that outlives a batch is kept by one process alone", hint="train with one")
        count = 1 if memory.scope == "persistent" else microbatches
        banks = [model.new_memory(rows, out / "memory" / str(n)) for n in range(count)]
        return cls([bank for bank in banks if bank is not None])

    def of_microbatch(self, number: int) -> MemoryBank:
        return self.banks[number % len(self.banks)]

    def commit(self) -> None:
        """Store what the step's forward passes staged; after all have gone backward."""
        for bank in self.banks:
            bank.commit()

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        tensors = {}
        for n, bank in enumerate(self.banks):
            tensors.update({f"{n}.{name}": tensor.cpu() for name, tensor in bank.state().items()})
        save_file(tensors, folder / _FILE)

    def read(self, folder: Path) -> None:
        """What `write` wrote. Raises RunError when it belongs to banks of another shape."""
        with TensorFile(folder / _FILE) as file:
            try:
                for n, bank in enumerate(self.banks):
                    bank.restore({name: file.read(f"{n}.{name}") for name in ("spans", "keys", "values")})
            except (KeyError, ValueError) as error:
                hint = "resume with the microbatch of the run"
                raise RunError(f"the saved memory does not fit: {error}", str(file.path), hint) from error
