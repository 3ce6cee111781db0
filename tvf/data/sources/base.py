"""Labelled images, in memory as uint8, in three parts: train, val, test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.splits import DataSplits, Split, limit_samples
from tvf.errors import require_choice, require_count, require_number, require_seed
from tvf.metrics import require_metric

SMALLEST_IMAGE = 32  # in pixels a side: backbones halve the image five times


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """What any data can be asked for; subclasses add `load(progress, store) -> Dataset`.

    `limit` keeps at most so many images of each part. `split_seed` draws the parts and the limit, and nothing else, so
    jobs with different run seeds share their split. `val_fraction` of the training images become the val part.
    `metric`, one of tvf.metrics.METRICS, chooses epochs and, at the end of a sweep, the fraction, on the val part.
    `class_weights` "balanced" has all classes count alike in training, however many images they have.
    """

    image_size: int
    batch_size: int = 32
    limit: int | None = None
    split_seed: int = 0
    val_fraction: float = 0.2
    metric: str = "accuracy"
    class_weights: str | None = None

    def __post_init__(self) -> None:
        require_count("data.image_size", self.image_size, SMALLEST_IMAGE)
        require_count("data.batch_size", self.batch_size, 1)
        require_seed("data.split_seed", self.split_seed)
        require_number("data.val_fraction", self.val_fraction, 0, 0.9, above=True)
        require_metric(self.metric)
        if self.class_weights is not None:
            require_choice("data.class_weights", self.class_weights, ("balanced",))
        if self.limit is not None:
            require_count("data.limit", self.limit, 1)

    def read_parts(
        self,
        classes: Sequence[str],
        parts: Sequence[np.ndarray],
        read: Callable[[np.ndarray], Split],
    ) -> DataSplits:
        """Cut train, val and test, given as sample numbers, to the limit; then read only what is left."""
        return DataSplits(
            tuple(classes),
            *(read(limit_samples(part, self.limit, self.split_seed)) for part in parts),
        )
