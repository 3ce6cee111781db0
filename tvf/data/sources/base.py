"""What every data source has in common: the shared options, and `catalog` as the method to write.

To add a data source: write a module beside this one with a subclass that implements `catalog`, add
`conf/data/<name>.yaml` (its `_target_` and options, on top of `conf/_data.yaml`), and add a row
for each new option in `tvf/config/identity.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tvf.data.duplicates import CHOICES, handle_duplicates
from tvf.data.pool import PARTS, Catalog, DataSplits, Pool, Split
from tvf.data.ranges import describe_lost_range
from tvf.data.splits import SplitOptions, divide, limit_pool, require_classes
from tvf.errors import require_choice, require_count
from tvf.metrics import require_metric
from tvf.store import Store

log = logging.getLogger(__name__)

SMALLEST_IMAGE = 32  # pixels per side: backbones halve the image five times


@dataclass(frozen=True, kw_only=True)
class DataSource(SplitOptions):
    """Options of all data sources; subclasses add their own, and implement `catalog`.

    See `SplitOptions` for the division into splits. `metric`, one of `tvf.metrics.METRICS`, chooses
    epochs and, at the end of a sweep, the fraction, on the val split. `class_weights` "balanced"
    gives all classes the same total weight in the training loss. `duplicates` "warn" names equal
    images in different splits, "error" raises an error, "drop" removes them from all splits but
    one.
    """

    image_size: int
    batch_size: int = 32
    metric: str = "accuracy"
    class_weights: str | None = None
    duplicates: str = "warn"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("data.image_size", self.image_size, SMALLEST_IMAGE)
        require_count("data.batch_size", self.batch_size, 1)
        require_choice("data.duplicates", self.duplicates, CHOICES)
        require_metric(self.metric)
        if self.class_weights is not None:
            require_choice("data.class_weights", self.class_weights, ("balanced",))

    def catalog(self) -> Catalog:
        """List the images with their classes, without reading them.

        Raises InputError that names the file or folder at fault.
        """
        raise NotImplementedError

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """Read the images and divide them into splits, with a progress bar and a store if given.

        Raises InputError that names the option, file or folder at fault.
        """
        catalog, places = self._divide()
        catalog = self.adapt(catalog, places, progress, store)
        pixels = catalog.read(np.arange(len(catalog)), progress, store)
        if note := describe_lost_range(pixels.ranges):
            log.warning("data: %s", note)
        places = handle_duplicates(places, catalog, pixels, self.duplicates)
        if self.duplicates == "drop":
            require_classes(places, catalog)
        pool = Pool(
            pixels,
            torch.from_numpy(catalog.labels),
            catalog.names,
            catalog.groups,
            catalog.weights,
            catalog.window,
            left_out=catalog.left_out,
            notes=catalog.notes,
        )
        train, val, test = (Split(pool, places[name]) for name in PARTS)
        return DataSplits(catalog.classes, train, val, test)

    def adapt(
        self,
        catalog: Catalog,
        places: Mapping[str, np.ndarray],
        progress: bool,
        store: Store | None,
    ) -> Catalog:
        """Set what reading the images takes from those to train on, at places["train"]: nothing."""
        return catalog

    def check_images(self, progress: bool = False, store: Store | None = None) -> None:
        """Raise InputError if images cannot be read. Does nothing where all are known to be good.

        A sweep calls it before its first job trains.
        """

    def count_changes(
        self, before: Mapping[str, np.ndarray], classes: Sequence[str], since: float
    ) -> dict[str, int]:
        """How many images were added, removed ... since a job read those of `before`.

        See `tvf.data.changes`. None at all where images do not change.
        """
        return {}

    def validation_names(self) -> list[str]:
        """List the images that validate, by name and without reading them; raises as `load`.

        Equal images in two splits, which `duplicates` is about, are not found this way.
        """
        catalog, places = self._divide()
        return [*catalog.take(places["val"]).names]

    def _divide(self) -> tuple[Catalog, dict[str, np.ndarray]]:
        """The images that `limit` keeps, and the places of each split among them."""
        catalog = self.catalog()
        catalog = catalog.take(limit_pool(catalog, self))
        return catalog, divide(catalog, self)
