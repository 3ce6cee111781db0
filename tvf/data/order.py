"""The order in which a job trains on its samples, and how that order is divided into batches."""

from collections.abc import Iterator

import numpy as np


def sample_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return a permutation of `count` samples, int64: the order in which `epoch` trains on them."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def split_batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield consecutive batches of `size`; the last one may be smaller.

    A single leftover sample joins the batch before it: BatchNorm needs at least two samples.
    """
    bounds = list(range(size, len(order), size))
    if size > 1 and bounds and len(order) - bounds[-1] == 1:
        bounds.pop()
    yield from np.split(order, bounds)
