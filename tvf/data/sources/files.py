"""What data sources of image files share: how files are read, checked and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvf.data.bands import import_tifffile
from tvf.data.changes import count_changes
from tvf.data.encoded import ImageFile
from tvf.data.images import read_images
from tvf.data.listed import ListedImages
from tvf.data.percentiles import find_window, parse_percentiles, without_copies
from tvf.data.pool import Catalog, Pixels
from tvf.data.rules import ReadingRules
from tvf.data.sources.base import DataSource
from tvf.data.splits import limit_pool
from tvf.errors import InputError, require_count, require_number
from tvf.store import Store


@dataclass(frozen=True, kw_only=True)
class FileSource(DataSource):
    """A data source whose images are files that a user may change.

    `channels` says what becomes red, green and blue. Images become squares as `resize`,
    `interpolation` and `pad_color` say: see `ReadingRules`. Those larger than `max_megapixels` are
    an error. `white_point` is the value that is shown as white; by default the largest that an
    image's bits can hold. `window` says instead which values are black and white, also of floats,
    signed values and 32 bits; ["1%", "99%"] are percentiles of the training images' values: see
    `tvf.data.percentiles`.
    """

    resize: str = ReadingRules.resize
    interpolation: str = ReadingRules.interpolation
    pad_color: str = ReadingRules.pad_color
    max_megapixels: float = 100.0
    white_point: int | None = None
    window: Sequence[float | str] | None = None
    channels: str | Sequence[int] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._rules().bands:  # checks the options
            import_tifffile()
        require_number("data.max_megapixels", self.max_megapixels, 0, above=True)
        if self.white_point is not None:
            require_count("data.white_point", self.white_point, 1, 65535)
            if self.window is not None:
                raise InputError(
                    f"data.white_point={self.white_point} cannot be used with data.window: the "
                    f"window [0,{self.white_point}] shows the same. Remove one of them."
                )

    def catalog_of(self, listed: ListedImages) -> Catalog:
        """A catalog of these images alone, which are read as the options say."""

        def read(places: np.ndarray, progress: bool, store: Store | None) -> Pixels:
            return self.read_files([listed.files[place] for place in places], progress, store)

        own: dict[str, Any] = {
            key: np.copy(v) if isinstance(v, np.ndarray) else v for key, v in vars(listed).items()
        }
        return Catalog(**own, read=read)

    def adapt(
        self,
        catalog: Catalog,
        places: Mapping[str, np.ndarray],
        progress: bool,
        store: Store | None,
    ) -> Catalog:
        """Find the window at percentiles of the images to train on, if it is one."""
        if (percentiles := parse_percentiles(self.window)) is None:
            return catalog
        files = catalog.files
        assert files is not None
        train = places["train"]
        if self.duplicates == "drop":  # equal files will be dropped: they have no say
            train = without_copies(files, places)
        window = find_window(
            files,
            percentiles,
            self.max_megapixels,
            self._rules().bands,
            train=train,
            progress=progress,
            store=store,
        )

        def read(places: np.ndarray, progress: bool, store: Store | None) -> Pixels:
            return self.read_files([files[place] for place in places], progress, store, window)

        return replace(catalog, read=read, window=window)

    def read_files(
        self,
        files: Sequence[ImageFile],
        progress: bool,
        store: Store | None,
        window: tuple[float, float] | None = None,
    ) -> Pixels:
        """Read images as the options say; InputError names those that cannot be read.

        `window` is that of percentiles.
        """
        return read_images(
            files,
            self.image_size,
            max_megapixels=self.max_megapixels,
            white_point=self.white_point,
            rules=self._rules(window),
            progress=progress,
            store=store,
        )

    def _rules(self, window: tuple[float, float] | None = None) -> ReadingRules:
        """The rules by the options; percentiles have the `window` that the images have given."""
        by_values = parse_percentiles(self.window) is None
        return ReadingRules.of(vars(self) if by_values else vars(self) | {"window": window})

    def check_images(self, progress: bool = False, store: Store | None = None) -> None:
        """Read the images, as any of them may be damaged."""
        catalog, places = self._divide()
        catalog = self.adapt(catalog, places, progress, store)
        catalog.read(np.arange(len(catalog)), progress, store)

    def count_changes(
        self, before: Mapping[str, np.ndarray], classes: Sequence[str], since: float
    ) -> dict[str, int]:
        """Compare the listing, and the files that are younger; InputError as for `catalog`."""
        catalog = self.catalog()
        return count_changes(catalog.take(limit_pool(catalog, self)), before, classes, since)
