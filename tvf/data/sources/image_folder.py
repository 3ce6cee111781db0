"""Your own images: one folder per class, below `train/`, `val/` and `test/` or without splits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvf.data.find_images import find_images
from tvf.data.folders import AUTO, LAYOUTS, find_layout
from tvf.data.groups import check_groups, find_groups
from tvf.data.listed import ListedImages
from tvf.data.pool import Catalog
from tvf.data.sources.files import FileSource
from tvf.errors import InputError, require_choice, require_path
from tvf.files import printable
from tvf.metrics import require_metric


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileSource):
    """Images in `root/train/<class>/`; `val/` and `test/` likewise, or split off from `train/`.

    The folders of splits may have their other usual names: see `split_of`. `layout` "flat" takes
    the folders in `root` as the classes, "splits" as splits; "auto" does the former if there is no
    `train/`, unless that is unclear. Images in folders inside a class are of that class.

    Without a `test/` folder, a part of the training images becomes the test split, and without
    `val/` a part of the rest becomes the val split; see `SplitOptions`. With `folds` or
    `outer_folds` the images of `val/` are divided like those of `train/`. `groups` says which
    images belong together and stay on one side: see `find_groups`. See `FileSource` for how
    images are read.
    """

    root: str
    layout: str = AUTO
    groups: int | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.groups)
        require_choice("data.layout", self.layout, LAYOUTS)
        require_path("data.root", self.root)
        root = Path(self.root).expanduser()
        if root.is_file():
            raise InputError(
                f"data.root={printable(self.root)} is a file, and must be a folder. For a table of "
                f"images: data=table data.path={printable(self.root)}."
            )
        if not root.is_dir():
            raise InputError(
                f"data.root={printable(self.root)} must be a folder with images in train/<class>/ "
                "or <class>/."
            )
        require_metric(self.metric, len(find_layout(root, self.layout, self._grouped).classes))

    @property
    def _grouped(self) -> bool:
        """Whether folders inside classes are groups."""
        return isinstance(self.groups, int)

    def catalog(self) -> Catalog:
        """List the images; InputError names the folder or file at fault."""
        root = Path(self.root).expanduser()
        found = find_images(root, self.layout, self._grouped)
        names = [printable(name) for name in found.names]
        files = [f"{root}/{name}" for name in found.names]
        groups = None if self.groups is None else find_groups(names, self.groups, found.flat)
        return self.catalog_of(
            ListedImages(
                found.classes,
                names,
                files,
                np.array(found.labels),
                parts=np.array(found.parts),
                groups=groups,
                left_out=found.left_out,
                notes=found.notes,
            )
        )
