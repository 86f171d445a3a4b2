"""The store of past keys and values: fixed capacity, in RAM or in memory-mapped files, outside the parameters.

keys, values: [slots, rows, K, places, C], a ring: entry n stands at n mod places. A slot is one layer that searches. In
scope "document" each row holds the newest tokens of the document it is in; "persistent" has one row for all that was
ever stored, places = M. A forward pass reads the store and only stages what it adds: `commit` writes it, after the
backward pass, so that a recomputation finds the store as the first run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shoestring.nn.memory.approximate import ApproximateIndex
from shoestring.nn.memory.config import MemoryBankConfig
from shoestring.nn.memory.search import Entries


@dataclass
class _Staged:
    """Tokens of one row of one slot that wait for `commit`: positions start, start + 1, ... of their document."""

    slot: int
    row: int
    start: int
    keys_KNC: Tensor
    values_KNC: Tensor


class MemoryBank:
    """rows: of the batches that it serves, in a fixed order from pass to pass. folder: for the files of store "file".

    begins[row], ends[row]: the positions that the row holds are begins .. ends, as far back as there are places. For
    "persistent" `ends` counts all that was ever stored.
    """

    def __init__(
        self,
        config: MemoryBankConfig,
        slots: int,
        rows: int,
        kv_heads: int,
        head_width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        folder: str | Path | None = None,
    ):
        self.config = config
        self.persistent = config.scope == "persistent"
        # A token looks M entries back from where its block begins, and up to W − 1 of its block are stored by then.
        self.places = config.capacity if self.persistent else config.capacity + config.block - 1
        self.rows = 1 if self.persistent else rows
        self.slots = slots
        self.begins, self.ends = [0] * self.rows, [0] * self.rows
        shape = (slots, self.rows, kv_heads, self.places, head_width)
        if config.store == "file":
            if folder is None:
                raise ValueError("a memory bank in files needs a folder for them")
            self.keys, self.values = (_mapped(Path(folder) / name, shape) for name in ("keys", "values"))
        else:
            self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self._staged: list[_Staged] = []
        self._next_slot = 0
        self._indexes: dict[int, ApproximateIndex] = {}

    def begin(self) -> None:
        """A forward pass begins: its layers take slots 0, 1, ... in their order."""
        self._next_slot = 0

    def next_slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1

    def document_sources(self, slot: int, row: int, low: int, high: int, position: int) -> list[Entries]:
        """What the row holds of positions low .. high of the document that goes on at `position`.

        Empty when the row's document is another one: it ended elsewhere.
        """
        if self.persistent or self.ends[row] != position:
            return []
        return self._sources(slot, row, max(low, self.begins[row], position - self.places), min(high, position))

    def persistent_sources(self, slot: int) -> list[Entries]:
        """All that the persistent store holds, in one source for every row alike; empty in scope "document"."""
        used = min(self.ends[0], self.places)
        if not self.persistent or not used:
            return []
        return [(self.keys[slot, :, :, :used], self.values[slot, :, :, :used])]

    def persistent_index(self, slot: int) -> ApproximateIndex | None:
        """What searches the persistent source when it is too large to be searched exactly.

        Raises ConfigError where faiss is needed and not installed.
        """
        used = min(self.ends[0], self.places)
        if not self.persistent or used <= self.config.exact_entries:
            return None
        index = self._indexes.get(slot)
        if index is None or not index.is_current(used, self.ends[0]):
            index = self._indexes[slot] = ApproximateIndex(self.keys[slot, 0, :, :used], self.ends[0])
        return index

    def _sources(self, slot: int, row: int, low: int, high: int) -> list[Entries]:
        if low >= high:
            return []
        first, last = low % self.places, (high - 1) % self.places + 1
        cuts = [slice(first, last)] if first < last else [slice(first, self.places), slice(0, last)]
        keys, values = self.keys[slot, row : row + 1], self.values[slot, row : row + 1]
        return [(keys[:, :, cut], values[:, :, cut]) for cut in cuts]

    def stage(self, slot: int, row: int, start: int, keys_KNC: Tensor, values_KNC: Tensor) -> None:
        """Remember to store a row's tokens, the last document in it; their positions begin at `start`."""
        self._staged.append(_Staged(slot, row, start, keys_KNC.detach(), values_KNC.detach()))

    def discard(self) -> None:
        """Forget what was staged, as after a pass that only measures."""
        self._staged.clear()

    @torch.no_grad()
    def commit(self) -> None:
        """Write what was staged since the last commit. Nothing that needs the backward pass may come after."""
        begins, ends = [list(self.begins) for _ in range(self.slots)], [list(self.ends) for _ in range(self.slots)]
        for staged in self._staged:
            slot = staged.slot
            row, start = (0, ends[slot][0]) if self.persistent else (staged.row, staged.start)
            if start != ends[slot][row]:
                begins[slot][row] = start
            ends[slot][row] = self._write(slot, row, start, staged)
        assert all(one == ends[0] for one in ends), "every layer stores the same tokens"
        self.begins, self.ends = begins[0], ends[0]
        self._staged.clear()

    def _write(self, slot: int, row: int, start: int, staged: _Staged) -> int:
        count = staged.keys_KNC.shape[1]
        kept = min(count, self.places)
        places = torch.arange(start + count - kept, start + count, device=self.keys.device) % self.places
        for store, new in ((self.keys, staged.keys_KNC), (self.values, staged.values_KNC)):
            store[slot, row].index_copy_(1, places, new[:, count - kept :].to(store.dtype))
        return start + count

    def clear(self) -> None:
        """Forget everything."""
        self.begins, self.ends = [0] * self.rows, [0] * self.rows
        self._indexes.clear()
        self.discard()

    def state(self) -> dict[str, Tensor]:
        """Tensors that `restore` takes back, cut to the fullest row; safetensors can hold them."""
        used = min(max(self.ends), self.places)
        return {
            "spans": torch.tensor([self.begins, self.ends], dtype=torch.int64),
            "keys": self.keys[..., :used, :].clone(),
            "values": self.values[..., :used, :].clone(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError when the state is of another shape."""
        (begins, ends), used = state["spans"].tolist(), state["keys"].shape[3]
        wanted = (*self.keys.shape[:3], used, self.keys.shape[4])
        if len(ends) != self.rows or tuple(state["keys"].shape) != wanted or used > self.places:
            raise ValueError(
                f"a saved memory of shape {tuple(state['keys'].shape)} does not fit one of {tuple(self.keys.shape)}"
            )
        self.keys[..., :used, :] = state["keys"]
        self.values[..., :used, :] = state["values"]
        self.begins, self.ends = begins, ends
        self._indexes.clear()
        self.discard()


def _mapped(file: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor in a file, all holes at first. An older file of this shape is taken as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as opened:
        opened.truncate(4 * int(np.prod(shape)))
    return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
