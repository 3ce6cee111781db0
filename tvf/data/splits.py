"""Labelled images, in memory as uint8, in three parts: train, val, test."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tvf.errors import InputError


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 3, S, S], and their classes, int64 [N].

    `key` names what is in the images, where that is known more cheaply than by reading them all.
    """

    images: Tensor
    labels: Tensor
    key: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSplits:
    """What a job trains on (`train`), chooses by (`val`) and is judged on once, at the end (`test`)."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split


def split_off(
    samples: np.ndarray, strata: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide `samples` into (rest, part) with `size` in the part, each stratum shared out in proportion.

    `strata[i]` is the stratum of sample number i. Both results are sorted. InputError where a stratum is too small.
    """
    from sklearn.model_selection import train_test_split

    counts = np.unique(strata[samples], return_counts=True)[1]
    if counts.min() < 2 or not len(counts) <= size <= len(samples) - len(counts):
        raise InputError(
            f"{len(samples)} images in {len(counts)} classes, {counts.min()} in the smallest, cannot be split with "
            f"{size} set apart: each side needs an image of each class. Add images, or give val/ and test/ folders."
        )
    rest, part = train_test_split(
        samples, test_size=size, stratify=strata[samples], random_state=seed
    )
    return np.sort(rest), np.sort(part)


def limit_samples(samples: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """At most `limit` of the samples, drawn by `seed`, in ascending order."""
    if limit is None or len(samples) <= limit:
        return samples
    return np.sort(np.random.default_rng(seed).permutation(samples)[:limit])
