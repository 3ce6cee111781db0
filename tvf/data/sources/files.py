"""What data sources of image files share: how files are read, checked and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.changes import count_changes
from tvf.data.encoded import ImageFile
from tvf.data.images import read_images
from tvf.data.pool import Pixels
from tvf.data.rules import ReadingRules
from tvf.data.sources.base import DataSource
from tvf.data.splits import limit_pool
from tvf.errors import InputError, require_count, require_number
from tvf.store import Store


@dataclass(frozen=True, kw_only=True)
class FileSource(DataSource):
    """A data source whose images are files that a user may change.

    Images become squares as `resize`, `interpolation` and `pad_color` say: see `ReadingRules`.
    Those larger than `max_megapixels` are an error. `white_point` is the value that is shown as
    white; by default the largest that an image's bits can hold. `window` says instead which values
    are black and white, also of floats, signed values and 32 bits.
    """

    resize: str = ReadingRules.resize
    interpolation: str = ReadingRules.interpolation
    pad_color: str = ReadingRules.pad_color
    max_megapixels: float = 100.0
    white_point: int | None = None
    window: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rules()  # checks the options
        require_number("data.max_megapixels", self.max_megapixels, 0, above=True)
        if self.white_point is not None:
            require_count("data.white_point", self.white_point, 1, 65535)
            if self.window is not None:
                raise InputError(
                    f"data.white_point={self.white_point} cannot be used with data.window: the "
                    f"window [0,{self.white_point}] shows the same. Remove one of them."
                )

    def read_files(self, files: Sequence[ImageFile], progress: bool, store: Store | None) -> Pixels:
        """Read images as the options say; InputError names those that cannot be read."""
        return read_images(
            files,
            self.image_size,
            max_megapixels=self.max_megapixels,
            white_point=self.white_point,
            rules=self._rules(),
            progress=progress,
            store=store,
        )

    def _rules(self) -> ReadingRules:
        return ReadingRules.of(vars(self))

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
