"""The pool of labelled images, in memory as uint8, divided into the splits train, val and test."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tvf.errors import InputError


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 3, S, S], and their classes, int64 [N].

    `fingerprint` identifies the content of `images` where that is known without hashing them.
    """

    images: Tensor
    labels: Tensor
    fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSplits:
    """Images to train on, to choose epochs with (`val`), and to evaluate a job on once (`test`)."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split


def split_off(
    samples: np.ndarray, strata: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide `samples` into (rest, split), `size` of them in the split, stratified.

    `strata[i]` is the stratum of sample i. Both results are sorted. Raises InputError if a stratum
    is too small.
    """
    from sklearn.model_selection import train_test_split

    counts = np.unique(strata[samples], return_counts=True)[1]
    if counts.min() < 2 or not len(counts) <= size <= len(samples) - len(counts):
        raise InputError(
            f"{len(samples)} images in {len(counts)} classes ({counts.min()} in the smallest) "
            f"cannot be split into {len(samples) - size} and {size}: each side needs an image of "
            "each class. Add images, or provide val/ and test/ folders."
        )
    rest, split = train_test_split(
        samples, test_size=size, stratify=strata[samples], random_state=seed
    )
    return np.sort(rest), np.sort(split)


def limit_samples(samples: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Return at most `limit` of the samples, drawn with `seed`, in ascending order."""
    if limit is None or len(samples) <= limit:
        return samples
    return np.sort(np.random.default_rng(seed).permutation(samples)[:limit])
