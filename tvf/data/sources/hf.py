"""A data set of Hugging Face `datasets`: a folder that `save_to_disk` wrote, or a hub name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.hf_dataset import on_hub, open_splits
from tvf.data.hf_rows import list_rows
from tvf.data.listed import ListedImages
from tvf.data.pool import Catalog
from tvf.data.sources.files import FileSource
from tvf.data.table_columns import AUTO, USUAL, require_column
from tvf.errors import InputError, require_bool
from tvf.metrics import require_metric


@dataclass(frozen=True, kw_only=True)
class HfDataset(FileSource):
    """The images of a data set in the folder `path`, or of that name on the Hugging Face hub.

    Of the hub, `config_name` chooses a configuration and `revision` a commit or tag; without
    `download`, its names are an error. Columns are named, or "auto": by their types Image and
    ClassLabel, else by their usual names; None for no split, group or weight, see `ImageTable`.
    Splits are those that the data set has, by their usual names, or those of a column; what is
    missing is split off as for folders. Rows without a label are left out. Images are read
    from their encoded bytes by the rules of `FileSource`.
    """

    path: str
    config_name: str | None = None
    revision: str | None = None
    download: bool = True
    image_column: str = AUTO
    label_column: str = AUTO
    split_column: str | None = AUTO
    group_column: str | None = AUTO
    weight_column: str | None = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.path, str) or not self.path:
            raise InputError(
                f"data.path={self.path!r} must be a folder, or a name on the Hugging Face hub."
            )
        for name in ("config_name", "revision"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InputError(f"data.{name}={value!r} must be text or null. Quote a number.")
        require_bool("data.download", self.download)
        for what in USUAL:
            require_column(what, getattr(self, f"{what}_column"))
        if self.download or not on_hub(self.path):
            require_metric(self.metric, len(self._list().classes))

    def catalog(self) -> Catalog:
        """List the images; InputError names the column, split or rows at fault."""
        return self.catalog_of(self._list())

    def count_changes(
        self, before: Mapping[str, np.ndarray], classes: Sequence[str], since: float
    ) -> dict[str, int]:
        """As of files; none of a name on the hub, which is not asked for this."""
        return {} if on_hub(self.path) else super().count_changes(before, classes, since)

    def _list(self) -> ListedImages:
        columns = {what: getattr(self, f"{what}_column") for what in USUAL}
        splits = open_splits(self.path, self.config_name, self.revision, self.download)
        return list_rows(self.path, splits, columns)
