"""What every data source has in common: the shared options, and `load` as the method to implement.

To add a data source: write a module beside this one with a subclass that implements `load`, add
`conf/data/<name>.yaml` (its `_target_` and options, on top of `conf/_data.yaml`), and add a row for each
new option in `tvf/config/identity.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.splits import DataSplits, Split, limit_samples
from tvf.errors import require_choice, require_count, require_number, require_seed
from tvf.metrics import require_metric
from tvf.store import Store

SMALLEST_IMAGE = 32  # pixels per side: backbones halve the image five times


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Options of all data sources; subclasses add their own, and implement `load`.

    `limit` keeps at most this many images of each split. `split_seed` alone draws the splits and
    the images that the limit keeps, so jobs with different run seeds share their splits.
    `val_fraction` of the training images become the val split. `metric`, one of
    `tvf.metrics.METRICS`, chooses epochs and, at the end of a sweep, the fraction, on the val
    split. `class_weights` "balanced" gives all classes the same total weight in the training loss.
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

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """Read the images and divide them into splits, with a progress bar and a store if given.

        Raises InputError that names the file or folder at fault.
        """
        raise NotImplementedError

    def read_splits(
        self,
        classes: Sequence[str],
        splits: Sequence[np.ndarray],
        read: Callable[[np.ndarray], Split],
    ) -> DataSplits:
        """Apply the limit to train, val and test, each given as sample indices, then read the rest.

        `read` returns the split of some sample indices.
        """
        train, val, test = (
            read(limit_samples(samples, self.limit, self.split_seed)) for samples in splits
        )
        return DataSplits(tuple(classes), train, val, test)
