"""What data sources of image files share: how files are read, checked and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.changes import count_changes
from tvf.data.fit import Fit
from tvf.data.images import read_images
from tvf.data.pool import Pixels
from tvf.data.sources.base import DataSource
from tvf.data.splits import limit_pool
from tvf.errors import require_count, require_number
from tvf.store import Store


@dataclass(frozen=True, kw_only=True)
class FileSource(DataSource):
    """A data source whose images are files that a user may change.

    Images become squares as `resize`, `interpolation` and `pad_color` say: see `Fit`. Those larger
    than `max_megapixels` are an error. `white_point` is the value that is shown as white; by
    default the largest that an image's bits can hold.
    """

    resize: str = Fit.resize
    interpolation: str = Fit.interpolation
    pad_color: str = Fit.pad_color
    max_megapixels: float = 100.0
    white_point: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fit()  # checks the options
        require_number("data.max_megapixels", self.max_megapixels, 0, above=True)
        if self.white_point is not None:
            require_count("data.white_point", self.white_point, 1, 65535)

    def read_files(self, files: Sequence[str], progress: bool, store: Store | None) -> Pixels:
        """Read images as the options say; InputError names those that cannot be read."""
        return read_images(
            files,
            self.image_size,
            max_megapixels=self.max_megapixels,
            white_point=self.white_point,
            fit=self._fit(),
            progress=progress,
            store=store,
        )

    def _fit(self) -> Fit:
        return Fit(self.resize, self.interpolation, self.pad_color)

    def check_images(self, progress: bool = False, store: Store | None = None) -> None:
        """Read the images, as any of them may be damaged."""
        catalog, _ = self._divide()
        catalog.read(np.arange(len(catalog)), progress, store)

    def count_changes(
        self, before: Mapping[str, np.ndarray], classes: Sequence[str], since: float
    ) -> dict[str, int]:
        """Compare the listing, and the files that are younger; InputError as for `catalog`."""
        catalog = self.catalog()
        return count_changes(catalog.take(limit_pool(catalog, self)), before, classes, since)
