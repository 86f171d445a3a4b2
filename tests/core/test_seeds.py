import random

import numpy as np
import pytest
import torch

from shoestring.core.errors import RunError
from shoestring.core.seeds import derive_seed, generator, restore_rng_state, rng_state, seed_everything


def draws():
    return random.gauss(0, 1), random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_restored_states_continue_with_the_same_numbers():
    seed_everything(3)
    random.gauss(0, 1), np.random.randn()  # both now hold a spare normal
    state = rng_state()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    expected = draws()
    assert draws() != expected
    restore_rng_state(state)
    assert draws() == expected


def test_streams_depend_on_seed_and_name_alone():
    first = torch.rand(4, generator=generator(1, "init", 3))
    torch.rand(10)
    assert torch.equal(first, torch.rand(4, generator=generator(1, "init", 3)))
    names = [(1, "init", 4), (2, "init", 3), (1, "init3"), (1, "init", 3)]
    others = [derive_seed(*name) for name in names]
    assert len(set(others)) == 4
    assert all(0 <= seed < 2**63 for seed in others)


def test_a_state_with_a_missing_part_is_refused():
    state = rng_state()
    del state["numpy"]
    with pytest.raises(RunError, match="lacks numpy"):
        restore_rng_state(state)
