"""The order in which a job trains on its samples, and how they are cut into batches."""

from collections.abc import Iterator

import numpy as np


def sample_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which `count` samples are trained on in `epoch`: int64, a permutation."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def split_batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive batches of `size`, the last one smaller; one sample left over joins the batch before it.

    (BatchNorm has no statistics of a single sample.)
    """
    bounds = list(range(size, len(order), size))
    if size > 1 and bounds and len(order) - bounds[-1] == 1:
        bounds.pop()
    yield from np.split(order, bounds)
