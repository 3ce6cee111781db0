"""The states of all generators of random numbers that training may draw from."""

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of all generators that training may draw from: torch's, Python's and numpy's."""
    numpy: Any = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:])
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore the states of all generators."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states and torch.cuda.is_initialized():  # it may resume on a CPU
        torch.cuda.set_rng_state(states["cuda"])
