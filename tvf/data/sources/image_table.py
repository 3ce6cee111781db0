"""Your own images, listed in a table: CSV, TSV or Parquet with a row for each image."""

import os
from dataclasses import dataclass
from pathlib import Path

from tvf.data.listed import ListedImages
from tvf.data.pool import Catalog
from tvf.data.sources.files import FileSource
from tvf.data.table_columns import AUTO, USUAL, require_column
from tvf.data.table_file import ENDINGS
from tvf.data.table_rows import TableOptions, list_table
from tvf.errors import InputError, require_path
from tvf.files import printable
from tvf.metrics import require_metric


@dataclass(frozen=True, kw_only=True)
class ImageTable(FileSource):
    """The images that the table `path` lists, with a header in its first line.

    Columns hold the path of an image, its label and, if there are such columns, its split (without
    one for val or test, a part of the training images is split off), its group (images of a group
    stay on one side) and its weight in the training loss: see `CrossEntropyLoss`. Columns are
    named, or "auto" for their usual names; None for no split, group or weight. Paths begin in
    `root`, by default the table's folder, and `ending` is added to them. Labels are names: 01 is
    not 1. See `FileSource` for how images are read.
    """

    path: str
    root: str | None = None
    ending: str | None = None
    image_column: str = AUTO
    label_column: str = AUTO
    split_column: str | None = AUTO
    group_column: str | None = AUTO
    weight_column: str | None = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path("data.path", self.path)
        if self.root is not None:
            require_path("data.root", self.root)
        path = Path(self.path).expanduser()
        if path.is_dir():
            raise InputError(
                f"data.path={printable(self.path)} is a folder, and must be a table. Without one: "
                f"data=image_folder data.root={printable(self.path)}."
            )
        if not path.is_file():
            raise InputError(
                f"data.path={printable(self.path)} does not exist: name a table that ends in "
                f"{', '.join(ENDINGS)}."
            )
        if path.suffix.lower() not in ENDINGS:
            raise InputError(
                f"data.path={printable(self.path)} must end in {', '.join(ENDINGS)}: save the "
                "table as one of these."
            )
        if self.root is not None and not Path(self.root).expanduser().is_dir():
            raise InputError(
                f"data.root={printable(self.root)} must be the folder in which the table's paths "
                "begin; without it, they begin in the table's own."
            )
        for what in USUAL:
            require_column(what, getattr(self, f"{what}_column"))
        if self.ending is not None and not isinstance(self.ending, str):
            raise InputError(f"data.ending={self.ending!r} must be text such as .jpg, or null.")
        require_metric(self.metric, len(self._list().classes))

    def catalog(self) -> Catalog:
        """List the images; InputError names the lines of the table that are at fault."""
        return self.catalog_of(self._list())

    def _list(self) -> ListedImages:
        columns = {what: getattr(self, f"{what}_column") for what in USUAL}
        root = None if self.root is None else os.path.expanduser(self.root)
        path = os.path.expanduser(self.path)
        return list_table(TableOptions(path, root, self.ending or "", tuple(columns.items())))
