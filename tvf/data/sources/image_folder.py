"""Your own images: one folder per class, below `train/` and, if they exist, `val/` and `test/`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvf.data.groups import check_groups, find_groups
from tvf.data.images import read_images
from tvf.data.pool import PARTS, Catalog, Pixels
from tvf.data.sources.base import DataSource
from tvf.errors import InputError, require_number
from tvf.metrics import require_metric
from tvf.store import Store


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in `root/train/<class>/`; `val/` and `test/` likewise, or split off from `train/`.

    Without a `test/` folder, a part of the training images becomes the test split, and without
    `val/` a part of the rest becomes the val split; see `SplitOptions`. With `folds` or
    `outer_folds` the images of `val/` are divided like those of `train/`. `groups` says which
    images belong together and stay on one side: see `find_groups`. Images larger than
    `max_megapixels` are an error.
    """

    root: str
    groups: int | str | None = None
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.groups)
        require_number("data.max_megapixels", self.max_megapixels, 0, above=True)
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(
                f"data.root={self.root} must be a folder with images in train/<class>/."
            )
        if not (root / "train").is_dir():
            raise InputError(
                f"data.root={self.root} has no train/ folder: put the images in train/<class>/."
            )
        require_metric(self.metric, len(_classes(root)))

    def catalog(self) -> Catalog:
        """List the images; InputError names the folder or file at fault."""
        root = Path(self.root).expanduser()
        classes = _classes(root)
        paths: list[Path] = []
        labels: list[int] = []
        parts: list[str] = []
        for name in PARTS:
            if (root / name).is_dir():
                images = _list_images(root / name, classes)
                paths += [path for path, _ in images]
                labels += [label for _, label in images]
                parts += [name] * len(images)
        names = [path.relative_to(root).as_posix() for path in paths]

        def read(places: np.ndarray, progress: bool, store: Store | None) -> Pixels:
            return read_images(
                [paths[place] for place in places],
                self.image_size,
                max_megapixels=self.max_megapixels,
                progress=progress,
                store=store,
            )

        groups = None if self.groups is None else find_groups(names, self.groups)
        return Catalog(tuple(classes), np.array(labels), names, read, np.array(parts), None, groups)


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders in train/, ascending."""
    classes = sorted(folder.name for folder in (root / "train").iterdir() if _is_class(folder))
    if len(classes) < 2:
        raise InputError(
            f"{root / 'train'} has {len(classes)} class folders, but must have at least 2: put the "
            "images in train/<class>/."
        )
    return classes


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")  # .ipynb_checkpoints is not a class


def _list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return path and label of each image in the folder of a split."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = sorted(path.name for path in folder.iterdir() if _is_class(path))
    if unknown := [name for name in found if name not in classes]:
        raise InputError(
            f"{folder / unknown[0]} is a class that train/ does not have: it must be one of "
            f"{', '.join(classes)}."
        )
    try:
        images = make_dataset(
            str(folder),
            {name: label for label, name in enumerate(classes)},
            extensions=IMG_EXTENSIONS,
            allow_empty=folder.name != "train",
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has a class folder without images. Add images or remove it. ({error})"
        ) from error
    if not images:
        raise InputError(
            f"{folder} has no images: add some, or remove it to split off a part of train/ instead."
        )
    return [(Path(path), label) for path, label in images]
