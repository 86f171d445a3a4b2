"""Random numbers that depend on a seed and a name, and on nothing else.

`generator(seed, "init", 3)` gives the same stream whatever ran before it, so adding a consumer of randomness
does not shift the others. The global states are handed to the trainer as tensors, because checkpoints hold
tensors and JSON only. Source of the derivation: SHA-256 of the seed and the stream's name, first 8 bytes.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

from shoestring.core.errors import RunError

_WORDS = 624  # of the Mersenne twister


def derive_seed(seed: int, *stream: str | int) -> int:
    """A seed in [0, 2^63) for the named stream; equal arguments give equal seeds on every machine."""
    text = repr((int(seed), *stream)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(seed: int, *stream: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator of its own for the named stream."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *stream))


def rng_state() -> dict[str, torch.Tensor]:
    """The global generators' states as integer tensors, ready for safetensors."""
    version, words, gauss = random.getstate()
    if gauss is not None:  # random.gauss keeps a spare normal; as tensors we hold its bits
        spare = torch.tensor([gauss], dtype=torch.float64)
    else:
        spare = torch.empty(0, dtype=torch.float64)
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict) and numpy_state["bit_generator"] == "MT19937" and version == 3
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": spare,
        "numpy": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": torch.tensor(
            [numpy_state["state"]["pos"], numpy_state["has_gauss"]], dtype=torch.int64
        ),
        "numpy_gauss": torch.tensor([numpy_state["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        for index, device_state in enumerate(torch.cuda.get_rng_state_all()):
            state[f"cuda.{index}"] = device_state
    return state


def restore_rng_state(state: dict[str, torch.Tensor]) -> None:
    """Put back what `rng_state` returned. Raises RunError if a part is missing or damaged.

    States of GPUs that this machine does not have are left out: a run may continue on another machine.
    """
    needed = ("python", "python_gauss", "numpy", "numpy_position", "numpy_gauss", "torch")
    missing = [name for name in needed if name not in state]
    if missing:
        raise RunError(f"the saved random state lacks {', '.join(missing)}")
    try:
        _restore(state)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise RunError(f"the saved random state is damaged: {error}") from error


def _restore(state: dict[str, torch.Tensor]) -> None:
    spare = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), spare[0] if spare else None))
    position, has_gauss = state["numpy_position"].tolist()
    if state["numpy"].shape != (_WORDS,) or not 0 <= position <= _WORDS:  # numpy would read beyond its memory
        raise ValueError("numpy's words or their position")
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": state["numpy"].numpy().astype(np.uint32), "pos": position},
            "has_gauss": has_gauss,
            "gauss": state["numpy_gauss"].item(),
        }
    )
    torch.set_rng_state(state["torch"].to(torch.uint8).cpu())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda.{index}" in state:
                torch.cuda.set_rng_state(state[f"cuda.{index}"].to(torch.uint8).cpu(), index)
